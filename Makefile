# `make`: every figure, the scorecard, report.html. `make test`: every check. Needs Python 3.11 or later, nothing else.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
READY := .venv/ready

.PHONY: all review test smoke smoke-six check torture audit bench gallery notebook clean
all: $(READY)
	@snakemake
	@snakemake --report report.html --quiet all
	@echo "Report: report.html"

# the experiments that answer the review
review: $(READY)
	@snakemake review
	@python -m krum review
	@echo "Answers: docs/review.md"

# the same workflow with tiny numbers: every experiment, or six of different kinds
smoke: $(READY)
	@snakemake --configfile profiles/smoke.yaml -- all review
	@snakemake --configfile profiles/smoke.yaml --report figures/smoke/report.html --quiet all

SIX = figure2 figure4 figure6 lemma1 complexity declared-f
smoke-six: $(READY)
	@snakemake --configfile profiles/smoke.yaml -- $(SIX)
	@snakemake --configfile profiles/smoke.yaml --report figures/smoke/report.html --quiet all -- $(SIX)

# docs/ and the README's scorecard, from a full run
gallery: all
	@python -m krum gallery
	@python -m krum fidelity

notebook: $(READY)
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet jupyterlab==4.6.6
	@jupyter lab notebooks/inspect.ipynb

test: $(READY) check smoke-six data
	@$(BIN)/python -m pytest -n auto --dist worksteal

check: $(READY)
	@ruff check . && ruff format --check . && snakefmt --check Snakefile && snakemake --lint && mypy && lint-imports

# what `make test` tries a few hundred times, a hundred thousand times, and twenty kills of the whole smoke sweep; the
# counts go to docs/reliability.md
torture: $(READY) data
	@$(BIN)/python -m pytest -n auto --dist worksteal --torture tests/test_hostile.py tests/test_fuzz.py tests/test_killed.py \
	    tests/test_determinism.py tests/test_bad_input.py tests/test_experiment.py tests/test_aggregators.py
	@echo "Counts: docs/reliability.md"

# known weaknesses of what is installed, as the Python Packaging Authority's database has them
audit: .venv/audit/bin/pip-audit
	@$< --strict --path "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

.venv/audit/bin/pip-audit: $(READY)
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1

.PHONY: data
data: $(READY)
	@snakemake --quiet all -- data/spambase.verified data/mnist.verified

# docs/performance.md: ours beside other packages, which are installed for it with the versions that are there as
# constraints
bench: .venv/bench
	@python -m benchmarks

.venv/bench: requirements-bench.txt $(READY)
	@$(BIN)/python -m pip freeze > .venv/versions.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c .venv/versions.txt -r requirements-bench.txt
	@touch $@

clean:
	rm -rf results/*.parquet results/curves results/probes results/benchmarks results/performance results/smoke
	rm -rf figures/*.png figures/*.pdf figures/*.html figures/scorecard.md figures/smoke
	find results figures -name '.*.partial*' -delete
	rm -rf logs .snakemake report.html

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: found Python %d.%d; give 3.11 or later, as in make PYTHON=python3.12" % sys.version_info[:2] or 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@
