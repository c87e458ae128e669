# `make`: every figure. `make test`: every check. Needs Python 3.11 or later and nothing else.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
READY := .venv/ready

.PHONY: all test smoke check bench clean
all: $(READY)
	@snakemake

smoke: $(READY)
	@snakemake --configfile profiles/smoke.yaml

test: $(READY) check smoke data
	@$(BIN)/python -m pytest -n auto

check: $(READY)
	@ruff check . && ruff format --check . && snakefmt --check Snakefile && snakemake --lint && mypy

.PHONY: data
data: $(READY)
	@snakemake --quiet all -- data/spambase.verified data/mnist.verified

bench: $(READY)
	@python benchmarks/simulation.py

clean:
	rm -rf results/*.parquet results/curves results/smoke figures/*.png figures/*.pdf figures/smoke logs .snakemake

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: found Python %d.%d; give 3.11 or later, as in make PYTHON=python3.12" % sys.version_info[:2] or 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@
