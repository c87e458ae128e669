"""Everything that reads a file, on files that nobody wrote: an answer, or one line that names the file."""

import gzip
import io
import os
import pickle
import pickletools
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.engine import simulate
from krum.simulation.unpickling import load_arrays
from krum.suite import claims, experiment, store
from krum.suite.experiment import EXPERIMENTS


def mutations(content):
    """Changed bytes: some flipped, cut off, left out, repeated or put in."""

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
        return bytes(changed)

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


def read_all(path, contents, examples, read):
    """Read a file of each of the drawn contents: how many there were, and how many of them were refused; some were."""
    cases = refusals = 0

    @settings(max_examples=examples)
    @given(content=contents)
    def run(content):
        nonlocal cases, refusals
        cases += 1
        path.write_bytes(content)
        refusals += refused(path, read) is None

    run()
    assert refusals
    return cases, refusals


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
LINES = [
    "title: again",
    "\t- tab",
    "- item",
    "? {a: b}",
    "a: &a [*a]",
    "x: !!python/object/apply:os.system [ls]",
    "%YAML 9",
]


def places(document, path=()):
    """Every place of a document."""
    yield path
    children = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in children:
        yield from places(value, (*path, key))


def put(document, path, value):
    """The document with another value at a place."""
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = put(copy[path[0]], path[1:], value)
    return copy


NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml") if path.stem not in experiment.NOT_EXPERIMENTS)


@st.composite
def yamls(draw, names):
    """The text of one of our files with another value somewhere, or with lines lost, moved and put in."""
    name = draw(st.sampled_from(names))
    text = (EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8")
    if draw(st.booleans()):
        document = yaml.safe_load(text)
        for _ in range(draw(st.integers(1, 2))):
            place = draw(st.sampled_from(list(places(document))))
            document = put(document, place, draw(ANYTHING))
        return yaml.safe_dump(document, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines)))
        new = draw(st.sampled_from(LINES) | st.text(max_size=20))
        lines[at : at + draw(st.integers(0, 2))] = [new] if draw(st.booleans()) else []
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def test_yaml(tmp_path, torture, count):
    """An experiment, or one line."""
    for name in ("defaults", "schema"):
        shutil.copy(EXPERIMENTS / f"{name}.yaml", tmp_path)
    path = tmp_path / "mine.yaml"

    def read():
        found = experiment.load(path)
        assert found.cells or found.probes
        for cell in found.cells[:20]:
            assert experiment.cell_from_json(cell.to_json()) == cell
        return found

    small = [name for name in NAMES if (EXPERIMENTS / f"{name}.yaml").stat().st_size < 4000]
    cases, _ = read_all(path, yamls(small), 10_000 if torture else 150, read)
    count("files drawn for a reader", cases)


def test_claims(tmp_path, torture, count):
    """Claims, or one line."""
    path, experiments = tmp_path / "claims.yaml", experiment.load_all()

    def read():
        found = claims.load(path)
        claims.check(found, experiments, path)
        return found

    cases, _ = read_all(path, yamls(["claims"]), 1_000 if torture else 20, read)
    count("files drawn for a reader", cases)


def test_overrides(tmp_path, torture, count):
    """An experiment with other parameters, or one line."""
    for name in ("defaults", "schema", "lemma1"):
        shutil.copy(EXPERIMENTS / f"{name}.yaml", tmp_path)
    cases = 0
    known = list(yaml.safe_load((EXPERIMENTS / "schema.yaml").read_text())["$defs"]["parameters"]["properties"])

    @settings(max_examples=2_000 if torture else 50)
    @given(overrides=st.dictionaries(st.sampled_from(known) | st.text(max_size=5), ANYTHING, max_size=2))
    def run(overrides):
        nonlocal cases
        cases += 1
        try:
            experiment.load(tmp_path / "lemma1.yaml", overrides)
        except InputError as error:
            assert "\n" not in str(error)

    run()
    count("files drawn for a reader", cases)


# ------------------------------------------------------------------------------------------------------------ parquet


def test_parquet(make_cell, few_samples, tmp_path, torture, count):
    """What was written, or one line; never another value."""
    path = tmp_path / "c.parquet"
    store.write_curve(make_cell(), simulate(make_cell(), few_samples), path, {"code": "x"})
    rows, metadata = store.read(path)

    def read():
        found = store.read(path)
        assert rows.equals(found[0]) and metadata == found[1]
        return found

    cases, refusals = read_all(path, mutations(path.read_bytes()), 20_000 if torture else 300, read)
    assert refusals > cases // 2
    count("files drawn for a reader", cases)


# ------------------------------------------------------------------------------------------------------- IDX and CSV

LABELS = "MNIST/raw/t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "file", "form"),
    [
        ("spambase", "spambase.data", "plain"),
        ("spambase", "spambase.data", "gz"),
        ("mnist", LABELS, "plain"),
        ("mnist", LABELS, "gz"),
    ],
)
def test_data_files(name, file, form, tmp_path, torture, count):
    """The published bytes, or one line."""
    if datasets.find(datasets.DATA, file) is None:
        pytest.skip("MNIST is not there; `make data` gets it")
    published = datasets.read_checked(datasets.DATA, name, file)
    content = gzip.compress(published, 1, mtime=0) if form == "gz" else published
    path = tmp_path / (Path(file).name + (".gz" if form == "gz" else ""))

    def read():
        found = datasets.read_checked(tmp_path, name, file)
        assert found == published
        return found

    cases, _ = read_all(path, mutations(content), 1_000 if torture else 15, read)
    count("files drawn for a reader", cases)


def test_a_bomb_is_not_unpacked(tmp_path):
    with gzip.open(tmp_path / "spambase.data.gz", "wb", compresslevel=9) as file:
        for _ in range(300):
            file.write(bytes(2**20))
    with pytest.raises(InputError, match=rf"{datasets.LARGEST_FILE + 1} bytes with .*expected sha256:ebec"):
        datasets.load("spambase", tmp_path)


def test_damaged_folds_are_dealt_again(tmp_path, monkeypatch):
    """What is kept of the folds to save time is never taken for them when it is another."""
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    labels = np.random.default_rng(0).integers(2, size=1200)
    dealt = datasets.folds(labels, 10, 3)
    (kept,) = (tmp_path / "prepared").iterdir()
    content = bytearray(kept.read_bytes())
    content[40], content[42] = content[42], content[40]  # two samples change places
    for damaged in (bytes(content), bytes(content[:-2]), b"", b"\x93NUMPY"):
        kept.write_bytes(damaged)
        again = datasets.folds(labels, 10, 3)
        assert all(
            np.array_equal(a, b)
            for one, other in zip(dealt, again, strict=True)
            for a, b in zip(one, other, strict=True)
        )


# -------------------------------------------------------------------------------------------------------- the pickle


def packed(content):
    """As Python 2 and an old numpy would have pickled it."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


ARRAYS = ((np.arange(6, dtype="f4").reshape(2, 3), np.arange(2)), [np.zeros((1, 4), "u1")])
HAPPENED = []
WATCHING = []


def watch(event, arguments):
    """What Python tells an audit hook of: anything that a pickle should never cause."""
    if WATCHING and not event.startswith(("builtins.id", "object.__getattr__", "sys._getframe", "gc.")):
        HAPPENED.append(event)


@pytest.fixture
def nothing_runs():
    """Fails where files are opened, modules imported, code compiled or run, or processes started."""
    if watch not in HOOKED:
        for encoding in ("latin1", "ascii", "raw-unicode-escape", "unicode-escape"):
            b"a".decode(encoding)  # which imports its module
        sys.addaudithook(watch)
        HOOKED.append(watch)

    def load(content):
        HAPPENED.clear()
        WATCHING.append(True)
        try:
            return load_arrays(io.BytesIO(content))
        finally:
            WATCHING.clear()
            assert not HAPPENED

    return load


HOOKED = []


def arrays_only(value):
    if isinstance(value, tuple | list):
        return all(map(arrays_only, value))
    return type(value) is np.ndarray and value.dtype.kind in "fiu"


def test_arrays_come_out(nothing_runs):
    found = nothing_runs(packed(ARRAYS))
    assert np.array_equal(found[0][0], ARRAYS[0][0]) and np.array_equal(found[0][1], ARRAYS[0][1])
    assert found[1][0].shape == (1, 4) and found[1][0].dtype == np.uint8
    by_columns = nothing_runs(packed([np.asfortranarray(ARRAYS[0][0])]))[0]
    assert np.array_equal(by_columns, ARRAYS[0][0])


class Runs:
    """What a malicious pickle is made of: reading it with `pickle.load` creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch pwned'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"(S'ls'\nios\nsystem\n.",
        b"\x82\x01.",  # an extension code
        b"Pname\n.",  # a persistent id
        b"cnumpy\ndtype\n(S'O'\ntR.",  # an array of objects
        b"cnumpy\ndtype\n}S'dtype'\nS'x'\nsb.",  # changes what a name stands for
        b"cnumpy\nndarray\n.",
        b"r\xff\xff\xff\x7f.",  # a place of the memo far away
        b"\x96" + (2**40).to_bytes(8, "little") + b".",  # a terabyte
        b"(lp0\ng0\na.",  # contains itself
        b"(lp0\n" + b"(g0\ng0\nlp0\n" * 100 + b".",  # 2^100 items, in a hundred lists
        b"N.",
        b"",
        b"(dS'a'\nI1\ns.",
        b"S'text'\n.",
        b"I1\n.",
    ],
    ids=range(20),
)
def test_nothing_else_comes_out_and_nothing_runs(content, nothing_runs, count):
    if content.startswith(b"(lp0\n(g0"):
        assert nothing_runs(content) is not None  # lists of lists of nothing: harmless, and told in no time
    else:
        with pytest.raises(pickle.UnpicklingError):
            nothing_runs(content)
    count("files drawn for a reader")


def test_a_malicious_object_among_arrays(tmp_path, nothing_runs):
    content = packed([ARRAYS, Runs(tmp_path / "pwned")])
    pickle.loads(content)  # it does what it is for
    (tmp_path / "pwned").rmdir()
    with pytest.raises(pickle.UnpicklingError, match=r"refused: the pickle names \w+\.mkdir"):
        nothing_runs(content)
    assert not (tmp_path / "pwned").exists()


OPCODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes if opcode.code not in ".\x95"]
PIECES = st.sampled_from(
    [
        *OPCODES,
        *OPCODES,
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"c_codecs\nencode\n",
        b"cos\nsystem\n",
        b"S'f4'\n",
        b"K\x01",
        b"K\x00\x85",
        b"C\x04abcd",
        b"(K\x01K\x01\x85S'f4'\nI00\nC\x04abcdt",
    ]
)


def test_programs_of_pickles(torture, count, nothing_runs):
    """Any program at all, and changed ones that would make arrays."""
    cases = 0

    @settings(max_examples=20_000 if torture else 300)
    @given(content=st.lists(PIECES | st.binary(max_size=3), max_size=25).map(b"".join) | mutations(packed(ARRAYS)))
    def run(content):
        nonlocal cases
        cases += 1
        for program in (content, content + b"."):
            try:
                assert arrays_only(nothing_runs(program))
            except pickle.UnpicklingError:
                pass

    run()
    count("files drawn for a reader", cases)
