"""Results on disk: equal curves, equal bytes; whole files or none; provenance inside."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import krum.__main__ as cli
from krum.simulation.run import simulate
from krum.suite import provenance, store
from krum.suite.experiment import EXPERIMENTS

DESIGNED = (
    "experiment dataset model aggregator attack workers byzantine declared_f byzantine_fraction batch_size "
    "learning_rate seed round test_error test_loss byzantine_weight"
).split()


def test_two_runs_give_the_same_bytes_without_a_clock(make_cell, tmp_path):
    cell = make_cell(attack="gaussian", model_options=(("hidden", (100, 100)),), seeds=2)
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file in files:
        assert cli.main(["curve", "--device", "cpu", "--cell", cell.to_json(), "--output", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert set(pq.read_metadata(files[0]).metadata) == {store.METADATA_KEY, b"ARROW:schema"}
    _, metadata = store.read(files[0])
    assert metadata["cell"] == json.loads(cell.to_json())
    assert metadata["code"] == provenance.code_digest(cell)
    assert set(metadata["libraries"]) == {"numpy", "pyarrow", "scikit-learn", "torch"}
    assert metadata["data"] == {
        "spambase.data": "sha256:ebec58cfca94ea61c77df632314acae15bad410f4769d38b1a66cb41050e3431"
    }
    assert (metadata["device"], metadata["repeats"]) == ("cpu", "to the byte, on this machine with these libraries")
    assert "repeats" in (EXPERIMENTS.parent / "results" / "README.md").read_text()


def test_results_of_an_experiment_join_its_curves(make_cell, few_samples, tmp_path):
    cells = [make_cell(), make_cell(aggregator="multi-krum", aggregator_options=(("m", 3),), declared_f=5)]
    paths = [tmp_path / f"{cell.slug}.parquet" for cell in cells]
    for cell, path in zip(cells, paths, strict=True):
        store.write_curve(cell, simulate(cell, few_samples), path, {"code": "digest"})
    for name in ("one", "two"):
        store.write_experiment("mine", paths, tmp_path / f"{name}.parquet", {"yaml": "title: x", "git": "commit"})
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    rows, metadata = store.read(tmp_path / "one.parquet")
    assert list(rows.columns[: len(DESIGNED)]) == DESIGNED
    assert rows.equals(pd.read_parquet(tmp_path / "one.parquet"))
    assert len(rows) == 2 * 3 * 3 and set(rows["experiment"]) == {"mine"}
    assert rows["aggregator_options"].unique().tolist() == ["{}", '{"m": 3}']
    assert rows["outside_guarantee"].unique().tolist() == [False, True]
    assert rows["model"].unique().tolist() == ["mlp-7-5"]
    assert metadata["yaml"] == "title: x" and metadata["git"] == "commit"
    assert {name: curve["code"] for name, curve in metadata["curves"].items()} == {c.slug: "digest" for c in cells}


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    with pytest.raises(ZeroDivisionError), store.replacing(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with store.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_two_writers_leave_one_whole_file(tmp_path):
    """A job that outlives its killed workflow, and the same job of the next one."""
    code = """
import sys
from krum.suite import store
while sys.stdin.readline():
    with store.replacing(sys.argv[1]) as temporary:
        temporary.write_text("a" * 200_000)
        print(flush=True)
"""
    path, whole = tmp_path / "shared.txt", ("a" * 200_000, "b" * 200_000)
    command = [sys.executable, "-c", code, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, cwd=EXPERIMENTS.parent, **pipes) as other:
        for _ in range(30):
            other.stdin.write("again\n")
            with store.replacing(path) as temporary:
                temporary.write_text(whole[1])
                other.stdout.readline()  # the other one is about to replace it, too
            assert path.read_text() in whole
        other.stdin.close()
    assert other.returncode == 0 and [file.name for file in tmp_path.iterdir()] == ["shared.txt"]


def test_nan_error_is_not_written_as_zero(make_cell, few_samples, tmp_path):
    columns = simulate(make_cell(aggregator="average", learning_rate=1e30), few_samples)
    store.write_curve(make_cell(), columns, tmp_path / "c.parquet", {})
    rows, _ = store.read(tmp_path / "c.parquet")
    assert np.array_equal(rows["test_loss"], columns["test_loss"], equal_nan=True)
    assert rows["diverged"].any()
