"""Bad input on the command line: one line that says what, where and what would do, before anything is written."""

import json

import pandas as pd
import pytest

import krum.__main__ as cli
from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.run import simulate
from krum.suite import experiment, planning, store


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch, count):
    """`refused(words, command...)`: the command fails with one line that holds the words, and writes nothing."""
    monkeypatch.chdir(tmp_path)

    def run(words, *command):
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        assert cli.main([str(part) for part in command]) == 1
        output = capsys.readouterr().err.splitlines()
        assert len(output) == 1 and output[0].startswith("error: "), output
        assert words in output[0]
        assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
        count("bad inputs refused in one line")

    return run


BAD_CELLS = {
    "no JSON": ("{", "--cell: not a cell"),
    "a list": ("[]", "--cell: not a cell"),
    "brackets": ("[" * 100_000, "--cell: not a cell"),
    "a field missing": ({"rounds": ...}, "missing"),
    "a field too many": ({"round": 3}, "unexpected keyword argument 'round'"),
    "workers a text": ({"workers": "3"}, "workers: found '3'"),
    "no workers": ({"workers": 0}, "workers: found 0"),
    "Byzantine beyond the share": ({"byzantine": 5}, "byzantine: found 5; with its other parameters it is 4"),
    "Byzantine negative": ({"byzantine": -1}, "byzantine: found -1"),
    "all Byzantine": ({"byzantine": 11, "byzantine_fraction": 1.0}, "byzantine_fraction: found 1.0"),
    "f beyond meaning": ({"declared_f": 10}, "n - f - 2 >= 1"),
    "f beyond n": ({"declared_f": 100}, "f is an integer from 0 to n - 1"),
    "never evaluated": ({"evaluate_every": 0}, "evaluate_every: found 0"),
    "no rounds": ({"rounds": -5}, "rounds: found -5"),
    "rounds a text": ({"rounds": "3"}, "rounds: found '3'"),
    "one fold": ({"folds": 1}, "folds: found 1"),
    "folds beyond": ({"folds": 5000}, "folds: found 5000"),
    "no seeds": ({"seeds": 0}, "seeds: found 0"),
    "no batch": ({"batch_size": 0}, "batch_size: found 0"),
    "a batch beyond the fold": ({"batch_size": 100_000}, "batch_size 100000 is more than the training fold"),
    "rate zero": ({"learning_rate": 0}, "learning_rate: found 0"),
    "rate not a number": ({"learning_rate": float("nan")}, "learning_rate: found nan"),
    "unknown rule": ({"aggregator": "krun"}, "did you mean 'krum'?"),
    "unknown attack": ({"attack": "gausian"}, "did you mean 'gaussian'?"),
    "unknown data": ({"dataset": "mnits"}, "did you mean 'mnist'?"),
    "unknown model": ({"model": "mpl"}, "did you mean 'mlp'?"),
    "sizes no list": ({"model_options": [["hidden", 100]]}, "hidden: found 100"),
    "an option of another": ({"aggregator_options": [["m", 3]]}, "krum: unknown option 'm'"),
    "an option without attack": (
        {"attack": "none", "byzantine": 0, "byzantine_fraction": 0.0, "attack_options": [["scale", 1]]},
        "none: unknown option 'scale'",
    ),
    "m beyond n": ({"aggregator": "multi-krum", "aggregator_options": [["m", 99]]}, "m = 99 of n = 11"),
    "faults beside attackers": ({"fault_rate": 0.3}, "fault_rate: found 0.3 beside"),
    "points of tables": ({"points": 10}, "spambase holds no images to deform"),
    "bulyan of too few": ({"aggregator": "bulyan"}, "n - 4f >= 1"),
}


@pytest.mark.parametrize(("change", "words"), BAD_CELLS.values(), ids=BAD_CELLS)
def test_cells(make_cell, change, words, refused):
    text = change
    if isinstance(change, dict):
        fields = {**json.loads(make_cell(attack="sign-flip").to_json()), **change}
        text = json.dumps({key: value for key, value in fields.items() if value is not ...})
    refused(words, "curve", "--cell", text, "--output", "x.parquet")


BAD_PROBES = {
    "no JSON": ("{", "--probe: not a probe"),
    "unknown": ({"name": "plain"}, "did you mean 'plane'?"),
    "no seeds": ({"seeds": 0}, "seeds: found 0"),
    "half a seed": ({"seeds": 1.5}, "seeds: found 1.5"),
    "seeds true": ({"seeds": True}, "seeds: found True"),
    "an unknown option": ({"options": [["worker", 20]]}, "did you mean 'workers'?"),
    "too many colluders": ({"options": [["byzantine", 50]]}, "byzantine: found 50 of 20 workers"),
    "one colluder": ({"options": [["byzantine", 1]]}, "at least 2 colluders"),
    "one process": ({"name": "exchange", "options": [["ranks", 1]]}, "ranks: found 1"),
    "unknown slices": ({"name": "split", "options": [["slices", "x"]]}, "slices: found 'x'"),
}


@pytest.mark.parametrize(("change", "words"), BAD_PROBES.values(), ids=BAD_PROBES)
def test_probes(change, words, refused):
    text = change if isinstance(change, str) else json.dumps({"name": "plane", "options": [], "seeds": 1, **change})
    refused(words, "probe", "--probe", text, "--output", "x.parquet")


@pytest.fixture
def curve(make_cell, few_samples, tmp_path):
    """A curve in a file of its own, of a cell that no experiment asks for."""
    from krum.suite import provenance

    path, cell = tmp_path / "c.parquet", make_cell()
    store.write_curve(cell, simulate(cell, few_samples), path, {"code": provenance.code_digest(cell), "data": {}})
    return path


FIGURE4 = experiment.EXPERIMENTS / "figure4.yaml"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("cannot be written, since", ["data", "spambase", "--output", "c.parquet/x"]),
        ("is no file, so it is not replaced", ["data", "spambase", "--output", "folder"]),
        ("is no file, so it is not replaced", ["data", "spambase", "--output", "/dev/null"]),
        ("is no file, so it is not replaced", ["data", "spambase", "--output", ""]),
        ("no path for a file", ["data", "spambase", "--output", "a\0b"]),
        ("no path for a file", ["data", "spambase", "--output", "x" * 5000]),
        ("did you mean 'spambase'?", ["data", "spambasse"]),
        ("which", ["collect", FIGURE4, "c.parquet", "--output", "x.parquet"]),
        ("not found; build it", ["collect", FIGURE4, "none.parquet", "--output", "x.parquet"]),
        ("--overrides: not JSON", ["collect", FIGURE4, "c.parquet", "--output", "x.parquet", "--overrides", "{"]),
        ("overrides: found", ["collect", FIGURE4, "c.parquet", "--output", "x.parquet", "--overrides", "3"]),
        ("cannot be read (No such file", ["collect", "none.yaml", "c.parquet", "--output", "x.parquet"]),
        ("is no file; give a results file", ["figure", "folder", "--output", "x"]),
        ("not found; build it", ["figure", "none.parquet", "--output", "x"]),
        ("cannot be read", ["figure", "text", "--output", "x"]),
        ("holds no provenance", ["figure", "foreign.parquet", "--output", "x"]),
        ("a single curve; give results/", ["figure", "c.parquet", "--output", "x"]),
        ("not an experiment's results", ["claims", "c.parquet", "--output", "x.parquet", "--captions", "x.json"]),
        ("no verdicts in it", ["scorecard", "c.parquet", "--page", "x.html", "--table", "x.md"]),
        ("none: is no folder", ["verify", "--results", "none"]),
        ("claims.parquet: not found", ["gallery", "--results", "none"]),
        ("review.parquet: not found", ["review", "--results", "none"]),
        ("cannot be read (Is a directory", ["cells", "folder.yaml"]),
        ("not valid YAML", ["cells", "c.parquet"]),
    ],
    ids=str,
)
def test_commands(curve, words, command, refused, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "text").write_text("not parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    if command[:1] == ["cells"] and command[1].endswith(".parquet"):
        command = ["cells", str((tmp_path / "c.parquet").rename(tmp_path / "c.yaml"))]
    refused(words, *command)


def test_one_value_changed_in_a_result(curve, refused):
    """Rewritten by somebody else, with our metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(curve)
    column = table.schema.get_field_index("test_error")
    changed = table["test_error"].to_pylist()
    changed[3] += 1e-9
    pq.write_table(table.set_column(column, "test_error", pa.array(changed)), curve)
    refused("damaged, since its content does not fit", "figure", "c.parquet", "--output", "x")


def test_the_same_curve_twice(project, refused, tmp_path):
    cell = experiment.load(project / "experiments" / "small.yaml").cells[0]
    path = tmp_path / "one.parquet"
    assert cli.main(["curve", "--cell", cell.to_json(), "--output", str(path)]) == 0
    yaml = project / "experiments" / "small.yaml"
    with pytest.raises(InputError, match="does not ask for or has already"):
        cli.collect(cli.parser().parse_args(["collect", str(yaml), str(path), str(path), "--output", "x.parquet"]))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("spambase.data", b"0,1\n", "4 bytes with sha256:"),
        ("spambase.data.gz", b"\x1f\x8b", "spambase.data.gz"),
        ("spambase.data", "\udcff".encode("utf-8", "surrogateescape"), "expected sha256:"),
        ("spambase.data", b"0" * (datasets.LARGEST_FILE + 9), f"{datasets.LARGEST_FILE + 1} bytes with"),
    ],
)
def test_data(name, content, words, tmp_path, count):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        datasets.load("spambase", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)
    count("bad inputs refused in one line")


def test_folders_that_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("")
    with pytest.raises(SystemExit, match="error: config: results: results cannot be written to"):
        planning.check_folders("results", "figures")
    planning.check_folders("new/folder", "figures")
