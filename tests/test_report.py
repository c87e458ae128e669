"""Captions, docs/fidelity.md, the gallery and the notebook: made from the experiments and results, and up to date."""

import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from figure_rows import rows_of
from nbclient import NotebookClient
from PIL import Image

from krum.errors import InputError
from krum.suite import claims, experiment, fidelity, reading, report, store

ROOT = Path(__file__).resolve().parent.parent
SPECS = experiment.load_all()


def test_fidelity_is_up_to_date():
    assert (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8") == fidelity.fidelity(SPECS), (
        "write it anew: python -m krum fidelity"
    )


def test_every_parameter_has_a_mark_and_a_choice_of_ours_one_of_its_own():
    """Whoever changes a parameter in an experiment says so there."""
    defaults = SPECS["figure4"].cells[0]
    marked = ("workers", "batch_size", "learning_rate", "rounds", "evaluate_every", "folds", "seeds")
    marked += ("worker_momentum", "fault_rate", "points")
    for spec in SPECS.values():
        document = reading.read_checked(experiment.EXPERIMENTS / f"{spec.name}.yaml", "experiment")
        for parameter in fidelity.PARAMETERS:
            if spec.cells and fidelity._values(spec.cells, parameter):
                mark = fidelity.mark(spec, parameter)
                assert re.match(r"\*\*((paper|supplement)\*\*|ours\*\*: .)", mark), (spec.name, parameter)
        assert all(fidelity.mark(spec, probe.name) for probe in spec.probes), spec.name
        for parameter in marked:
            if any(getattr(cell, parameter) != getattr(defaults, parameter) for cell in spec.cells):
                assert parameter in document.get("fidelity", {}), (spec.name, parameter)


PAPERS = {name: spec for name, spec in SPECS.items() if spec.part != "review"}


def scorecard(**columns):
    """A scorecard of one claim that holds, with changes."""
    row = dict.fromkeys(claims.COLUMNS, "x") | {"value": 1.0, "low": 0.5, "high": 1.5, "verdict": "holds", "where": ""}
    row |= {"p": 0.03, "survives": True, "least_difference": 0.5, "low_corrected": 0.25, "high_corrected": 1.75}
    return pd.DataFrame([{**row, "source": "paper", "experiment": "figure4", **columns}])


def test_captions_state_claim_setting_seeds_and_verdicts():
    spec = SPECS["figure6"]
    rows = {"figure6": rows_of(spec)}
    texts = report.captions(SPECS, rows, scorecard(experiment="figure6", sentence="It is so.", where="batch_size 3"))
    assert texts["scorecard"] == "1 claims: 1 hold, 0 fail, 0 undecided."
    assert spec.title in texts["figure6"] and " ".join(spec.claim.split()) in texts["figure6"]
    assert "20 workers, batch 3" in texts["figure6"] and "over 2 seeds" in texts["figure6"]
    assert "- **holds**: It is so. (x 1 [0.5, 1.5]; to hold: x (batch_size 3))" in texts["figure6"]


def test_scorecard_page_and_tables_show_every_claim_and_the_readme_the_papers_own():
    doubtful = scorecard(source="ours", sentence="beyond", verdict="fails", survives=False)
    rows = pd.concat([scorecard(sentence="a < b | c"), doubtful])
    page, table, short = report.page(rows), report.markdown(rows), report.short_markdown(rows)
    assert "a &lt; b | c" in page and "beyond" in page and 'class="fails"' in page
    assert r"a &lt; b \| c" in table and "| 0.03 | 0.5 | ✘ fails † |" in table
    assert "1 (†) do not survive" in table and "0.05 verdicts would be expected wrong" in page
    assert "| 1 [0.5, 1.5] | [0.25, 1.75] |" in table, "for folds that share data"
    assert r"a &lt; b \| c" in short and "beyond" not in short and "2 claims: 1 hold, 1 fail" in short
    both = pd.concat([scorecard(sentence=f"Krum is best ({title}).") for title in ("MNIST", "Spambase (log features)")])
    short = report.short_markdown(both)
    assert "| figure4 | Krum is best | MNIST 1 [0.5, 1.5] ✔ holds<br>Spambase (log features) 1" in short


def test_notebook_is_stripped_and_runs_on_results(tmp_path, monkeypatch):
    spec = SPECS["figure4"]
    described = {"name": spec.name, "title": spec.title, "figure": dict(spec.figure)}
    for name, rows in (("figure4", rows_of(spec)), ("claims", scorecard())):
        metadata = {"experiment": described, "git": "0123456789abcdef"}
        store.write_table(pa.Table.from_pandas(rows, preserve_index=False), tmp_path / f"{name}.parquet", metadata)
    notebook = nbformat.read(ROOT / "notebooks" / "inspect.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code), "strip it before committing"
    monkeypatch.setenv("KRUM_RESULTS", str(tmp_path))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output.get("data", {}) for cell in code for output in cell.outputs]
    assert sum("image/png" in output for output in outputs) == 2
    assert any("1 claims:" in str(output.get("text/markdown")) for output in outputs)


@pytest.mark.skipif(not (ROOT / "figures" / "smoke" / "report.html").exists(), reason="`make smoke` has not run")
def test_the_report_is_one_file_that_needs_no_network():
    """Snakemake's report of the smoke run: its figures and, where all experiments ran, the scorecard first."""
    folder = ROOT / "figures" / "smoke"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"https?:", page)
    assert "2. The paper" in page and sum(f"figures/smoke/{path.name}" in page for path in folder.glob("*.png")) >= 6
    if (folder / "scorecard.html").exists():
        assert all(words in page for words in ("1. Scorecard", "scorecard.html", "95 % interval", "claims:"))


def test_docs_show_every_figure():
    """docs/gallery.md and the pictures of the gallery and the review, written after full runs."""
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert all(spec.title in text for spec in PAPERS.values())
    for name in SPECS:
        assert (ROOT / "docs" / "figures" / f"{name}.png").stat().st_size > 10_000
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "claims:" in readme and "docs/gallery.md" in readme


def test_gallery_writes_pictures_page_and_scorecard(tmp_path):
    for folder in ("docs", "figures"):
        (tmp_path / folder).mkdir()
    (tmp_path / "README.md").write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    chosen = {name: SPECS[name] for name in ("variants", "figure4")}
    for name in chosen:
        shutil.copy(ROOT / "docs" / "figures" / f"{name}.png", tmp_path / "figures" / f"{name}.png")
    report.gallery(chosen, scorecard(), {"figure4": "no\n- yes\n"}, tmp_path / "figures", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "1 claims: 1 hold" in text
    assert "stale" not in text
    gallery = (tmp_path / "docs" / "gallery.md").read_text()
    assert gallery.index("(figures/figure4.png)") < gallery.index("(figures/variants.png)"), "the paper's figures first"
    assert "- yes" in gallery and "\nno" not in gallery
    assert Image.open(tmp_path / "docs" / "figures" / "figure4.png").width <= report.GALLERY_WIDTH
    with pytest.raises(InputError, match="build every figure with `make` first"):
        report.gallery(chosen, scorecard(), {}, tmp_path / "none", tmp_path)
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(InputError, match=r"the lines .* are not there"):
        report.gallery({}, scorecard(), {}, tmp_path / "figures", tmp_path)


TABLES = {"survival": "a table of faults", "survives": "a margin", "memory": "so many MB"}


def test_answers_take_every_number_from_the_results():
    """docs/review.in.md names claims about the review's experiments only, and no number is written by hand."""
    template = (ROOT / "docs" / "review.in.md").read_text(encoding="utf-8")
    names = set(re.findall(r"{([a-z0-9-]+)}", template)) - {"tally"} - set(TABLES)
    known = {claim.name for claim in claims.load() if SPECS[claim.experiment].part == "review"}
    assert names <= known and len(names) > 20
    rows = pd.DataFrame(
        [
            {"claim": name, "value": 0.5, "low": 0.25, "high": 0.75, "verdict": "holds", "survives": True}
            for name in names
        ]
    )
    text = report.answers(template, rows, TABLES)
    assert all(table in text for table in TABLES.values())
    assert "0.5 [0.25, 0.75] (✔ holds)" in text and not re.findall(r"{[a-z0-9-]+}", text)
    with pytest.raises(InputError, match="no claim"):
        report.answers("{no-such-claim}", rows)
    for name in re.findall(r"\(figures/([\w-]+)\.png\)", template):
        assert SPECS[name].part == "review"


def test_survival_marks_each_occurrence_from_the_rarest_on():
    same = {"measurement": "training", "aggregator": "krum", "workers": 20, "round": 10, "rounds": 10}
    cells = [
        ("none", 0.0, 0, 0.0, 1),
        ("crash", 0.01, 0, 0.01, 1),
        ("crash", 0.0, 1, 0.05, 2),
        ("crash", 0.0, 9, 0.3, 1),
    ]
    rows = [
        {**same, "attack": attack, "fault_rate": rate, "byzantine": byzantine, "seed": seed, "test_error": error}
        for attack, rate, byzantine, rise, spread in cells
        for seed, error in enumerate(0.1 + rise + 0.001 * spread * np.arange(-2, 3))
    ]
    lines = report.survival(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| fault | how often | krum |"
    assert lines[2] == "| crash | 1 in 100 rounds, 1 of 20, 9 of 20 | ✔?✘ |"


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
