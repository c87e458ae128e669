"""Everything that reads a file, on files that nobody wrote: an answer, or one line that names the file."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import krum.__main__ as cli
import krum.train
from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.parameters import PARAMETERS, Cell
from krum.simulation.run import simulate
from krum.suite import claims, experiment, store
from krum.suite.experiment import EXPERIMENTS


class Drawn(bytes):
    """A drawn file. A failure reports how it was made, not its bytes, of which there may be many."""

    def __new__(cls, content, how):
        drawn = super().__new__(cls, content)
        drawn.how = how
        return drawn

    def __repr__(self):
        return f"Drawn({self.how:.300})"


def mutations(content, before=b"", after=b""):
    """Changed bytes: some flipped, cut off, left out, repeated or put in. What is before and after them stays."""

    def change(edits):
        changed = bytearray(content)
        for kind, place, put in edits:
            at = int(place * len(changed))
            if kind == "flip" and changed:
                changed[min(at, len(changed) - 1)] ^= put[0] or 1
            elif kind == "cut":
                del changed[at:]
            elif kind == "leave out":
                del changed[at : at + 16 * len(put)]
            elif kind == "repeat":
                changed[at:at] = changed[at : at + 16 * len(put)]
            else:
                changed[at:at] = put
        return Drawn(before + changed + after, repr(edits))

    kinds = st.sampled_from(["flip", "flip", "flip", "cut", "leave out", "repeat", "put in"])
    edit = st.tuples(kinds, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8))
    return st.lists(edit, min_size=1, max_size=4).map(change)


def refused(path, read):
    """What reading gives, or None where it is refused in one line that begins with the file."""
    try:
        return read()
    except InputError as error:
        assert str(error).startswith(str(path)), error
        assert "\n" not in str(error)
        return None


@pytest.fixture
def read_all(count):
    """`read_all(path, contents, read)`: read a file of each of the drawn contents; the share that is refused."""

    def read_drawn(path, contents, read):
        refusals = []

        @given(content=contents)
        def run(content):
            path.write_bytes(content)
            refusals.append(refused(path, read) is None)

        run()
        count("files drawn for a reader", len(refusals))
        assert any(refusals)
        return np.mean(refusals)

    return read_drawn


# --------------------------------------------------------------------------------------------------------------- YAML

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.sampled_from([10**400, -1, 0, 1, 2**63])
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["krum", "none", "mnist", "gaussian", "median"])
    | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
LINES = ["title: again", "\t- tab", "- item", "? {a: b}", "a: &a [*a]", "x: !!python/object/apply:os.system [ls]"]


def places(document, path=()):
    """Every place of a document."""
    yield path
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from places(document[key], (*path, key))


def put(document, path, value):
    """The document with another value at a place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


@st.composite
def yamls(draw, texts):
    """One of some texts with another value somewhere, or with lines lost, moved and put in."""
    text, edits = draw(st.sampled_from(texts)), []
    if draw(st.booleans()):
        document = yaml.safe_load(text)
        for _ in range(draw(st.integers(1, 2))):
            place, value = draw(st.sampled_from(list(places(document)))), draw(ANYTHING)
            document = put(document, place, value)
            edits.append((place, value))
        changed = yaml.safe_dump(document, allow_unicode=draw(st.booleans()))
    else:
        lines = text.splitlines()
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(lines)))
            new = draw(st.sampled_from(LINES) | st.text(max_size=20))
            until = at + draw(st.integers(0, 2))
            lines[at:until] = [new] if draw(st.booleans()) else []
            edits.append((at, until, new))
        changed = "\n".join(lines)
    return Drawn(changed.encode("utf-8", "surrogatepass"), f"{text.splitlines()[0]!r:.80}, {edits}")


def test_a_drawn_yaml_is_an_experiment_or_refused(tmp_path, read_all):
    shutil.copy(EXPERIMENTS / "fidelity.yaml", tmp_path)
    path = tmp_path / "mine.yaml"

    def read():
        loaded = experiment.load(path)
        assert loaded.cells or loaded.probes
        for cell in loaded.cells[:20]:
            assert Cell.from_json(cell.to_json()) == cell
        return loaded

    texts = [file.read_text() for file in EXPERIMENTS.glob("*.yaml") if file.stem not in experiment.NOT_EXPERIMENTS]
    read_all(path, yamls([text for text in texts if len(text) < 4000]), read)


def test_drawn_claims_are_read_or_refused(tmp_path, read_all):
    path, experiments = tmp_path / "claims.yaml", experiment.load_all()

    def read():
        loaded = claims.load(path)
        claims.check(loaded, experiments, path)
        return loaded

    entries = yaml.safe_load((EXPERIMENTS / "claims.yaml").read_text())["claims"]
    texts = [yaml.safe_dump({"claims": [entry]}) for entry in entries]
    read_all(path, yamls(texts), read)


def test_drawn_overrides_are_used_or_refused(tmp_path, count):
    for name in ("fidelity", "lemma1"):
        shutil.copy(EXPERIMENTS / f"{name}.yaml", tmp_path)

    @given(overrides=st.dictionaries(st.sampled_from(PARAMETERS) | st.text(max_size=5), ANYTHING, max_size=2))
    def run(overrides):
        count("files drawn for a reader")
        try:
            experiment.load(tmp_path / "lemma1.yaml", overrides)
        except InputError as error:
            assert "\n" not in str(error)

    run()


def test_what_is_found_is_reported_small():
    """Not as a file of seventy kilobytes."""
    texts = [(EXPERIMENTS / "claims.yaml").read_text()]

    @settings(max_examples=5, database=None, phases=[Phase.generate])  # as drawn: to make it smaller takes long
    @given(content=yamls(texts) | mutations(bytes(70_000)))
    def run(content):
        assert not content

    with pytest.raises(AssertionError) as failure:
        run()
    assert len("".join(failure.value.__notes__)) < 2000


# ------------------------------------------------------------------------------------------------------- command line


def test_a_drawn_command_line_works_or_is_refused_in_one_line(make_cell, tmp_path, monkeypatch, capsys, count):
    def not_run(*arguments, **options):
        raise InputError("it would run")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.run, "simulate", not_run)
    monkeypatch.setattr(cli.probes, "run_probe", not_run)
    Path("text").write_text("a text")
    Path("folder").mkdir()
    shutil.copy(EXPERIMENTS / "lemma1.yaml", tmp_path)
    cell = json.loads(make_cell().to_json())
    probe = {"name": "timing", "options": [["workers", 5]], "seeds": 1}

    @st.composite
    def changed(draw, values):
        key = draw(st.sampled_from(list(values)))
        return json.dumps({**values, key: draw(ANYTHING)}, default=str)

    paths = st.sampled_from(["text", "folder", "lemma1.yaml", "none/x.parquet", "x.parquet", "", "\udcff", "-"])
    texts = st.text(max_size=8) | st.sampled_from(["{}", "[", "spambase", "NaN", '{"rounds": 1e400}'])
    words = paths | texts.filter(lambda word: "\0" not in word) | changed(cell) | changed(probe)
    options = st.sampled_from(
        ["--cell", "--probe", "--output", "--device", "--overrides", "--results", "--page", "--x"]
    )
    names = st.sampled_from([*cli.commands.commands, "krum"])

    @given(name=names, arguments=st.lists(words | st.tuples(options, words), max_size=5))
    def run(name, arguments):
        capsys.readouterr()
        given = [part for argument in arguments for part in ([argument] if isinstance(argument, str) else argument)]
        code = cli.main([name, *given])
        told = capsys.readouterr().err.splitlines()
        assert code == 0 or (len(told) == 1 and told[0].startswith("error: ")), told
        count("command lines drawn")

    run()

    @given(parameters=st.dictionaries(st.sampled_from(PARAMETERS), ANYTHING | words, max_size=3))
    def train(parameters):
        given = [f"{name}={value}" for name, value in parameters.items()]
        try:
            krum.train._cell(given, 5)
        except InputError as error:
            assert "\n" not in str(error)
        count("command lines drawn")

    train()


# ------------------------------------------------------------------------------------------------------------ parquet


def test_damaged_parquet_is_refused_or_reads_as_it_was(make_cell, few_samples, tmp_path, read_all):
    """Damaged values are refused; what lies behind them, the file's own description, is read or refused."""
    path = tmp_path / "c.parquet"
    store.write_curve(make_cell(), simulate(make_cell(), few_samples), path, {"code": "x"})
    content = path.read_bytes()
    rows, metadata = store.read(path)
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # of the values

    def read():
        read_rows, read_metadata = store.read(path)
        assert rows.equals(read_rows) and metadata == read_metadata
        return read_rows

    assert read_all(path, mutations(content[:end], after=content[end:]), read) > 0.5
    read_all(path, mutations(content[end:], before=content[:end]), lambda: store.read(path))


# ------------------------------------------------------------------------------------------------------- IDX and CSV


def test_damaged_data_are_refused(tmp_path, read_all):
    """The published bytes, or one line."""
    for name, file in (("spambase", "spambase.data"), ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte")):
        if datasets.find(datasets.DATA, file) is None:
            continue  # MNIST is not there; `make data` gets it
        published = datasets.read_checked(datasets.DATA, name, file)

        def read(name=name, file=file, published=published):
            content = datasets.read_checked(tmp_path, name, file)
            assert content == published
            return content

        for ending, content in (("", published), (".gz", gzip.compress(published, 1, mtime=0))):
            path = tmp_path / f"{Path(file).name}{ending}"
            read_all(path, mutations(content), read)
            path.unlink()


def test_a_bomb_is_not_unpacked(tmp_path):
    with gzip.open(tmp_path / "spambase.data.gz", "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match=rf"{datasets.LARGEST_FILE + 1} bytes with .*expected sha256:ebec"):
        datasets.load("spambase", tmp_path)
