"""Captions, docs/fidelity.md, the gallery and the notebook: made from the experiments and results, and up to date."""

import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from krum.errors import InputError
from krum.suite import claims, experiment, fidelity, planning, report

ROOT = Path(__file__).resolve().parent.parent
SPECS = experiment.load_all()


def test_fidelity_is_up_to_date():
    assert (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8") == fidelity.fidelity(SPECS), (
        "write it anew: python -m krum fidelity"
    )


def test_fidelity_has_every_parameter_of_every_experiment_with_its_mark():
    for spec in SPECS.values():
        for parameter in fidelity.PARAMETERS:
            if spec.cells and fidelity._values(spec.cells, parameter):
                assert re.match(r"\*\*((paper|supplement)\*\*|ours\*\*: .)", fidelity.mark(spec, parameter)), (
                    spec.name,
                    parameter,
                )
        for name in {probe.name for probe in spec.probes}:
            assert fidelity.mark(spec, name), (spec.name, name)


def test_a_choice_of_ours_that_differs_from_the_defaults_has_its_own_mark():
    """Whoever changes a parameter in an experiment says so there."""
    defaults = SPECS["figure4"].cells[0]
    for spec in SPECS.values():
        own = experiment._read(experiment.EXPERIMENTS / f"{spec.name}.yaml")[0].get("fidelity", {})
        for parameter in (
            "workers",
            "batch_size",
            "learning_rate",
            "rounds",
            "evaluate_every",
            "folds",
            "seeds",
            *fidelity.UNUSUAL,
        ):
            if any(getattr(cell, parameter) != getattr(defaults, parameter) for cell in spec.cells):
                assert parameter in own, (spec.name, parameter)


PAPERS = {name: spec for name, spec in SPECS.items() if spec.part != "review"}
SMOKE = ROOT / "results" / "smoke"
needs_smoke = pytest.mark.skipif(not (SMOKE / "claims.parquet").exists(), reason="`make smoke` has not run")


@needs_smoke
def test_captions_state_setting_seeds_and_verdicts():
    captions = json.loads((SMOKE / "captions.json").read_text(encoding="utf-8"))
    assert "hold" in captions.pop("scorecard")
    assert set(captions) == set(PAPERS)
    for name, caption in captions.items():
        assert SPECS[name].title in caption
        assert "seeds" in caption
        assert re.search(r"\*\*(holds|fails|undecided)\*\*", caption), name
        if SPECS[name].cells:
            assert "20" in caption and "workers" in caption


@needs_smoke
def test_notebook_is_stripped_and_runs_on_the_smoke_results():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "notebooks" / "inspect.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, "strip the outputs before committing"
    before = os.environ.get("KRUM_RESULTS")
    os.environ["KRUM_RESULTS"] = str(SMOKE)
    try:
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    finally:
        os.environ.pop("KRUM_RESULTS") if before is None else os.environ.update(KRUM_RESULTS=before)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert any("claims:" in str(output.get("data", {}).get("text/markdown")) for output in outputs)


@needs_smoke
def test_the_report_is_one_file_that_needs_no_network():
    """Snakemake's report of the smoke run: every figure with its caption, the scorecard first."""
    page = (ROOT / "figures" / "smoke" / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?:", page)
    for name in PAPERS:
        assert f"figures/smoke/{name}.png" in page
    for category in ("1. Scorecard", "2. The paper", "3. Its supplement", "4. Beyond the paper"):  # in this order
        assert category in page
    assert "scorecard.html" in page and "bootstrap" in page and "claims:" in page


def test_the_gallery_shows_every_figure():
    """docs/gallery.md and its pictures, which `make gallery` writes after a full run."""
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name, spec in PAPERS.items():
        assert spec.title in text
        assert (ROOT / "docs" / "figures" / f"{name}.png").stat().st_size > 10_000
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "claims:" in readme and "docs/gallery.md" in readme


def test_gallery_writes_pictures_page_and_scorecard(tmp_path):
    """The command that a full run is followed by, on what is in docs/ now."""
    for folder in ("docs", "figures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    for name in PAPERS:
        shutil.copy(ROOT / "docs" / "figures" / f"{name}.png", tmp_path / "figures" / f"{name}.png")
    scorecard = pd.DataFrame([dict.fromkeys(claims.COLUMNS, "x")])
    scorecard = scorecard.assign(value=1.0, low=0.5, high=1.5, verdict="holds", source="paper", where="")
    report.gallery(PAPERS, scorecard, {"figure4": "no\n- yes\n"}, tmp_path / "figures", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert (
        text.startswith("before\n") and text.endswith("after\n") and "1 claims: 1 hold" in text and "stale" not in text
    )
    gallery = (tmp_path / "docs" / "gallery.md").read_text()
    assert all(f"(figures/{name}.png)" in gallery for name in PAPERS) and "- yes" in gallery and "\nno" not in gallery
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(InputError, match=r"the lines .* are not there"):
        report.gallery(PAPERS, scorecard, {}, tmp_path / "figures", tmp_path)
    with pytest.raises(InputError, match="build every figure with `make` first"):
        report.gallery(PAPERS, scorecard, {}, tmp_path / "none", tmp_path)


TABLES = {"survival": "a table of faults", "survives": "a margin", "memory": "so many MB"}


def test_answers_take_every_number_from_the_results():
    """docs/review.in.md names claims about the review's experiments only, and no number is written by hand."""
    template = (ROOT / "docs" / "review.in.md").read_text(encoding="utf-8")
    names = set(re.findall(r"{([a-z0-9-]+)}", template)) - {"tally"} - set(TABLES)
    known = {claim.name for claim in claims.load() if SPECS[claim.experiment].part == "review"}
    assert names <= known and len(names) > 20
    rows = pd.DataFrame(
        [{"claim": name, "value": 0.5, "low": 0.25, "high": 0.75, "verdict": "holds"} for name in names]
    )
    text = report.answers(template, rows, TABLES)
    assert all(table in text for table in TABLES.values())
    assert "0.5 [0.25, 0.75] (✔ holds)" in text and not re.findall(r"{[a-z0-9-]+}", text)
    with pytest.raises(InputError, match="no claim"):
        report.answers("{no-such-claim}", rows)
    for name in re.findall(r"\(figures/([\w-]+)\.png\)", template):
        assert SPECS[name].part == "review"


def faulty_rows(error):
    """Rows of one rule with an error(occurrence, seed), without faults and under three occurrences of one."""
    table = []
    for attack, rate, byzantine in (("none", 0.0, 0), ("crash", 0.01, 0), ("crash", 0.0, 1), ("crash", 0.0, 9)):
        for seed in range(5):
            row = {"measurement": "training", "aggregator": "krum", "attack": attack, "fault_rate": rate, "workers": 20}
            row |= {"byzantine": byzantine, "seed": seed, "round": 10, "rounds": 10}
            table.append({**row, "test_error": error((rate, byzantine), seed)})
    return pd.DataFrame(table)


def test_survival_marks_each_occurrence_from_the_rarest_on():
    rise = {(0.0, 0): 0.0, (0.01, 0): 0.01, (0.0, 1): 0.05, (0.0, 9): 0.3}
    text = report.survival(faulty_rows(lambda who, seed: 0.1 + rise[who] + 0.001 * (seed - 2) * (1 + who[1] % 2)))
    assert text.splitlines()[0] == "| fault | how often | krum |"
    assert text.splitlines()[2] == "| crash | 1 in 100 rounds, 1 of 20, 9 of 20 | ✔?✘ |"


def test_memory_is_read_from_the_benchmark_files(tmp_path):
    spec = SPECS["data-size"]
    with pytest.raises(InputError, match="no benchmark of a finished curve"):
        report.memory(spec, tmp_path, 10_000, 10_000_000)
    (tmp_path / "benchmarks").mkdir()
    for cell in spec.cells:
        text = f"s\th:m:s\tmax_rss\n9.0\t0:00:09\t{500 if cell.points < 10**6 else 510}.0\n"
        (tmp_path / "benchmarks" / f"{cell.slug}.tsv").write_text(text)
    assert report.memory(spec, tmp_path, 10_000, 10_000_000) == (
        "500 MB at 10,000 points, 510 MB at 10,000,000: 1.02 times"
    )


def test_what_the_memory_is_measured_on_runs_in_a_process_of_its_own():
    """The benchmark files of the workflow see a job's own process only, and short jobs run in the warm one."""
    chosen = planning.plan(ROOT, {})
    for cell in SPECS["data-size"].cells:
        assert cell.slug in chosen.long_curves
    rule = (ROOT / "Snakefile").read_text(encoding="utf-8").partition("use rule curve as long_curve")[2]
    rule = rule.partition("\nrule ")[0]
    assert 'module="krum",' in rule and "benchmark:" in rule


@needs_smoke
def test_smoke_touches_every_experiment_of_the_review():
    for name in set(SPECS) - set(PAPERS):
        assert (ROOT / "figures" / "smoke" / f"{name}.png").stat().st_size > 5_000
