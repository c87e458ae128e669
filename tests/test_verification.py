"""`python -m krum verify`: what is stale is told, and nothing else."""

import shutil

import numpy as np
import pyarrow as pa
import pytest

import krum.__main__ as cli
from krum.simulation import datasets
from krum.simulation.recording import COLUMNS
from krum.suite import experiment, provenance, store
from krum.suite.experiment import EXPERIMENTS
from krum.suite.verification import verify

YAML = """title: small
claim: none
part: beyond
grid:
  - dataset: spambase
    aggregator: [average, krum]
    attack: none
    declared_f: 6
figure: {kind: curves}
"""


@pytest.fixture
def project(tmp_path):
    """An experiment of two curves, its results and its figure; the curves' numbers are zero."""
    folders = {name: tmp_path / name for name in ("experiments", "results", "figures", "data")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("defaults", "schema"):
        shutil.copy(EXPERIMENTS / f"{name}.yaml", folders["experiments"])
    yaml = folders["experiments"] / "small.yaml"
    yaml.write_text(YAML)
    collect(folders)
    return folders


def collect(folders, changes=None):
    """Write the curves, join them, draw a figure."""
    spec = experiment.load(folders["experiments"] / "small.yaml")
    paths = []
    for cell in spec.cells:
        columns = {name: np.zeros(1, bool if name == "diverged" else np.int64) for name in COLUMNS}
        source = {"code": provenance.code_digest(cell), "data": datasets.DATASETS[cell.dataset].checksums}
        paths.append(folders["results"] / "curves" / f"{cell.slug}.parquet")
        store.write_curve(cell, columns, paths[-1], source | (changes or {}))
    joined = folders["results"] / "small.parquet"
    source = {"experiment": {"name": "small"}, "yaml": spec.source, "overrides": {}}
    store.write_experiment("small", paths, joined, source)
    (folders["figures"] / "small.png").write_bytes(b"..." + store.file_digest(joined).encode())
    return paths


def problems(folders):
    found = verify(folders["results"], folders["figures"], folders["experiments"], folders["data"])
    return {path.name: problem for path, problem in found if problem}


def test_what_is_current_is_not_told(project):
    assert problems(project) == {}
    assert len(list(verify(project["results"], project["figures"], project["experiments"], project["data"]))) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [({"code": "other"}, "other code"), ({"data": {"spambase.data": "sha256:0"}}, "other data")],
)
def test_other_code_or_data(project, change, words):
    paths = collect(project, change)
    found = problems(project)
    assert set(found) == {"small.parquet", *(path.name for path in paths)}
    assert all(words in problem for problem in found.values())


def test_an_edited_yaml(project):
    yaml = project["experiments"] / "small.yaml"
    yaml.write_text(YAML.replace("[average, krum]", "[average, medoid]"))
    found = problems(project)
    assert "has changed since" in found.pop("small.parquet")
    assert list(found.values()) == ["no experiment asks for it"]
    yaml.unlink()
    assert "is gone" in problems(project)["small.parquet"]


def test_a_figure_of_other_results(project):
    rows, metadata = store.read(project["results"] / "small.parquet")
    store.write_table(pa.Table.from_pandas(rows), project["results"] / "small.parquet", {**metadata, "x": 1})
    assert list(problems(project)) == ["small.png"]
    (project["results"] / "small.parquet").unlink()
    assert "are gone" in problems(project)["small.png"]


def test_files_that_are_damaged_or_somebody_elses(project):
    curve = sorted((project["results"] / "curves").glob("*.parquet"))[0]
    curve.write_bytes(curve.read_bytes()[:100])
    (project["results"] / "other.parquet").write_bytes(b"no parquet")
    (project["data"] / "spambase.data").write_text("1,2,3\n")
    found = problems(project)
    assert "cannot be read" in found[curve.name] and "cannot be read" in found["other.parquet"]
    assert "expected sha256" in found["spambase.data"]


def test_a_scorecard_of_other_results(project):
    table = pa.table({"verdict": ["holds"]})
    scorecard = project["results"] / "claims.parquet"
    store.write_table(table, scorecard, {"digests": {"small": store.file_digest(project["results"] / "small.parquet")}})
    assert problems(project) == {}
    store.write_table(table, scorecard, {"digests": {"small": "sha256:0"}})
    assert problems(project) == {"claims.parquet": "judged other results of small than those that are here"}


def test_the_command(project, capsys, monkeypatch):
    arguments = ["verify", "--results", str(project["results"]), "--figures", str(project["figures"])]
    monkeypatch.setattr(verify, "__defaults__", (project["experiments"], project["data"]))
    assert cli.main(arguments) == 0 and "verify: 4 files, all current" in capsys.readouterr().out
    collect(project, {"code": "other"})
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.out.count("other code") == 3 and "3 of 4 files are not current" in shown.err
