"""Bad input on the command line: one line that says what, where and what would do, before anything is written."""

import json
import re

import pandas as pd
import pytest

import krum.__main__ as cli
import krum.train
from krum.errors import InputError
from krum.simulation.run import simulate
from krum.suite import experiment, planning, provenance, store

FIGURE4 = experiment.EXPERIMENTS / "figure4.yaml"
SLUG = experiment.load(FIGURE4).cells[0].slug


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch, count):
    """`refused(words, command...)`: the command fails with one line that holds the words, and writes nothing."""
    monkeypatch.chdir(tmp_path)

    def files():
        return {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def run(words, *command):
        before, _ = files(), capsys.readouterr()
        assert cli.main([str(part) for part in command]) in (1, 2)
        output = capsys.readouterr().err.splitlines()
        assert len(output) == 1 and output[0].startswith("error: "), output
        assert words in output[0]
        assert files() == before
        count("bad inputs refused in one line")

    return run


def test_what_is_no_cell_or_probe(make_cell, refused):
    def cell(**changes):
        return json.dumps({**json.loads(make_cell(attack="sign-flip").to_json()), **changes})

    def probe(**changes):
        return json.dumps({"name": "plane", "options": [], "seeds": 1, **changes})

    for words, text in [
        *(("--cell, a line of `python -m krum cells`: not a cell", text) for text in ("{", "[]", "[" * 100_000)),
        ("missing", '{"dataset": "spambase"}'),
        ("unknown aggregator 'krun'", cell(aggregator="krun")),
        ("option m", cell(aggregator="multi-krum", aggregator_options=[["m", "x"]])),
        ("byzantine: found 30 of", cell(byzantine=30)),
        ("attack sign-flip: found nobody", cell(byzantine=0, byzantine_fraction=0.0)),
        ("unexpected keyword argument 'round'", cell(round=3)),
        ("workers: found '3'", cell(workers="3")),
        ("byzantine: found -1", cell(byzantine=-1)),
        ("learning_rate: found nan", cell(learning_rate=float("nan"))),
        ("folds: found 5000", cell(folds=5000)),
        ("rounds: found 0", cell(rounds=0)),
    ]:
        refused(words, "curve", "--cell", text, "--output", "x.parquet")
    for words, text in [
        ("--probe, a line of `python -m krum cells`: not a probe", "{"),
        ("did you mean 'plane'?", probe(name="plain")),
        ("seeds: found 0", probe(seeds=0)),
        ("did you mean 'workers'?", probe(options=[["worker", 20]])),
    ]:
        refused(words, "probe", "--probe", text, "--output", "x.parquet")


def test_commands_refuse_what_they_cannot_use(make_cell, few_samples, refused, tmp_path):
    cell = make_cell()
    source = {"code": provenance.code_digest(cell), "data": {}}
    store.write_curve(cell, simulate(cell, few_samples), tmp_path / "c.parquet", source)
    (tmp_path / "c.yaml").write_bytes((tmp_path / "c.parquet").read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "text").write_text("not parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    to_x = ["--output", "x.parquet"]
    for words, *command in [
        ("permission denied", "data", "spambase", "--output", "c.parquet/x"),
        ("is no file, so it is not replaced", "data", "spambase", "--output", "folder"),
        ("is no file, so it is not replaced", "data", "spambase", "--output", "/dev/null"),
        ("is no file, so it is not replaced", "data", "spambase", "--output", ""),
        ("did you mean 'spambase'?", "data", "spambasse"),
        ("device: found 'gpu'; give auto, cpu or cuda", "curve", "--cell", cell.to_json(), "--device", "gpu", *to_x),
        ("does not ask for it", "collect", FIGURE4, "c.parquet", *to_x),
        ("not found; build it", "collect", FIGURE4, f"{SLUG}.parquet", *to_x),
        ("cannot be read (No such file", "collect", "none.yaml", "c.parquet", *to_x),
        ("cannot be read", "figure", "folder", "--output", "x"),
        ("not found; build it", "figure", "none.parquet", "--output", "x"),
        ("cannot be read", "figure", "text", "--output", "x"),
        ("holds no provenance", "figure", "foreign.parquet", "--output", "x"),
        ("not an experiment's results; give results/", "figure", "c.parquet", "--output", "x"),
        ("not an experiment's results", "claims", "c.parquet", *to_x, "--page", "x.html"),
        ("claims.parquet: not found", "gallery", "--results", "none"),
        ("review.parquet: not found", "review", "--results", "none"),
        ("cannot be read (Is a directory", "cells", "folder.yaml"),
        ("not valid YAML", "cells", "c.yaml"),
    ]:
        refused(words, *command)


def test_a_wrong_command_line(refused, tmp_path):
    for words, *command in [
        ("No such command 'curv'", "curv"),
        ("No such option", "data", "--outptu", "x"),
        ("Missing argument 'NAME'", "data"),
        ("Missing option '--cell'", "curve"),
        ("--overrides: not valid YAML", "collect", FIGURE4, "c.parquet", "--output", "x", "--overrides", "{"),
        ("overrides: found 3; give a mapping", "collect", FIGURE4, "c.parquet", "--output", "x", "--overrides", "3"),
    ]:
        refused(words, *command)


def test_real_training_reads_what_experiments_read():
    """And refuses the same, in the same words; also what real workers do not do."""

    def cell(*parameters):
        return krum.train._cell(["dataset=spambase", "aggregator=MultiKrum", "declared_f=1", *parameters], 5)

    read = cell("learning_rate=1e-2", "rounds=20.0", "batch_size=1.0")
    assert (read.learning_rate, read.rounds, read.batch_size, read.aggregator) == (0.01, 20, 1, "multi-krum")
    assert isinstance(read.rounds, int) and isinstance(read.batch_size, int)
    for words, *parameters in [
        ("give parameter=value", "rounds"),
        ("'rounds=[': not valid YAML", "rounds=["),
        ("'seeds=2001-01-01': not valid YAML: found a timestamp", "seeds=2001-01-01"),
        ("rounds: found 20.5", "rounds=20.5"),
        ("rounds is given twice", "rounds=1", "rounds=2"),
        ("attack nan: found nobody; give byzantine, byzantine_fraction or fault_rate", "attack=nan"),
        ("measure_gradient: found True, which is simulated only", "measure_gradient=true"),
        ("compare_with: found 'medoid', which is simulated only", "compare_with=medoid"),
        ("fault_rate: found 0.1, which is simulated only", "attack=nan", "fault_rate=0.1"),
        ("worker_momentum: found 0.9, which is simulated only", "worker_momentum=0.9"),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            cell(*parameters)


def test_folders_that_are_files(tmp_path, monkeypatch):
    plan = planning.Plan({}, [], "results", "figures", "auto", {})
    monkeypatch.chdir(tmp_path)
    planning.check_before_start(plan)
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match=r"config: results/any.file: permission denied"):
        planning.check_before_start(plan)
