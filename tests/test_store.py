"""Results on disk: equal curves, equal bytes; whole files or none; provenance inside."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import krum.__main__ as cli
from krum.errors import InputError
from krum.simulation.run import simulate
from krum.suite import provenance, store
from krum.suite.experiment import EXPERIMENTS

DESIGNED = (
    "experiment dataset model aggregator attack workers byzantine declared_f byzantine_fraction batch_size "
    "learning_rate seed round test_error test_loss byzantine_weight"
).split()


def run(cell, path):
    command = [
        sys.executable,
        "-m",
        "krum",
        "curve",
        "--device",
        "cpu",
        "--cell",
        cell.to_json(),
        "--output",
        str(path),
    ]
    subprocess.run(command, cwd=EXPERIMENTS.parent, check=True, capture_output=True)


def test_two_runs_give_the_same_bytes(make_cell, tmp_path):
    cell = make_cell(attack="gaussian", model_options=(("hidden", (100, 100)),), seeds=2)
    run(cell, tmp_path / "a.parquet")
    run(cell, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    _, metadata = store.read(tmp_path / "a.parquet")
    assert metadata["cell"] == json.loads(cell.to_json())
    assert metadata["code"] == provenance.code_digest(cell)
    assert set(metadata["libraries"]) == {"numpy", "pyarrow", "scikit-learn", "torch"}
    assert metadata["data"] == {
        "spambase.data": "sha256:ebec58cfca94ea61c77df632314acae15bad410f4769d38b1a66cb41050e3431"
    }


def test_an_experiments_results(make_cell, few_samples, tmp_path):
    cells = [make_cell(), make_cell(aggregator="multi-krum", aggregator_options=(("m", 3),), declared_f=5)]
    paths = [tmp_path / f"{cell.slug}.parquet" for cell in cells]
    for cell, path in zip(cells, paths, strict=True):
        store.write_curve(cell, simulate(cell, few_samples), path, {"code": "digest"})
    source = {"yaml": "title: x", "git": "commit", "experiment": {"name": "mine"}}
    for name in ("one", "two"):
        store.write_experiment("mine", paths, tmp_path / f"{name}.parquet", source)
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


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.unlink(), "not found"),
        (lambda path: pd.DataFrame({"a": [1]}).to_parquet(path), "holds no provenance"),
    ],
)
def test_damaged_results(make_cell, few_samples, tmp_path, damage, words, capsys):
    path = tmp_path / "c.parquet"
    store.write_curve(make_cell(), simulate(make_cell(), few_samples), path, {})
    damage(path)
    with pytest.raises(InputError, match=words) as caught:
        store.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert cli.main(["figure", str(path), "--output", str(tmp_path / "figure")]) == 1
    assert words in capsys.readouterr().err


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


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), store.replacing(tmp_path / "file" / "x.parquet"):
        pass


def test_bad_cell_on_the_command_line(tmp_path, capsys):
    for text in ("{", "[]", '{"dataset": "mnist"}'):
        assert cli.main(["curve", "--cell", text, "--output", str(tmp_path / "x.parquet")]) == 1
        assert "--cell: not a cell" in capsys.readouterr().err


def test_curves_of_other_code_are_not_collected(make_cell, few_samples, tmp_path, capsys):
    """What lies in results/curves/ may be older than the code, when Snakemake's own records are gone."""
    path = tmp_path / "c.parquet"
    store.write_curve(make_cell(), simulate(make_cell(), few_samples), path, {"code": "old"})
    collect = ["collect", str(EXPERIMENTS / "figure4.yaml"), str(path), "--output", str(tmp_path / "all.parquet")]
    assert cli.main(collect) == 1
    assert "computed by other code" in capsys.readouterr().err
    assert cli.main([*collect, "--overrides", "{"]) == 1
    assert "--overrides: not JSON" in capsys.readouterr().err


def test_bad_device(make_cell, tmp_path, capsys):
    curve = ["curve", "--cell", make_cell().to_json(), "--output", str(tmp_path / "x.parquet")]
    assert cli.main([*curve, "--device", "gpu"]) == 1
    assert "device: found 'gpu'; give auto, cpu or cuda" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_parquet_holds_no_clock(make_cell, few_samples, tmp_path):
    store.write_curve(make_cell(), simulate(make_cell(), few_samples), tmp_path / "c.parquet", {})
    metadata = pq.read_metadata(tmp_path / "c.parquet")
    assert set(metadata.metadata) == {store.METADATA_KEY, store.DIGEST_KEY, b"ARROW:schema"}
    assert metadata.num_row_groups == 1


def test_nan_error_is_not_written_as_zero(make_cell, few_samples, tmp_path):
    columns = simulate(make_cell(aggregator="average", learning_rate=1e30), few_samples)
    store.write_curve(make_cell(), columns, tmp_path / "c.parquet", {})
    rows, _ = store.read(tmp_path / "c.parquet")
    assert np.array_equal(rows["test_loss"], columns["test_loss"], equal_nan=True)
    assert rows["diverged"].any()
