"""Everything that reads a file, on files that nobody wrote: an answer, or one line that names the file."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.cell import PARAMETERS, Cell
from krum.simulation.run import simulate
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


def read_all(path, contents, read):
    """Read a file of each of the drawn contents: how many there were, and how many of them were refused; some were."""
    cases = refusals = 0

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


@st.composite
def yamls(draw, texts):
    """One of some texts with another value somewhere, or with lines lost, moved and put in."""
    text = draw(st.sampled_from(texts))
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


def test_yaml(tmp_path, count):
    """An experiment, or one line."""
    shutil.copy(EXPERIMENTS / "fidelity.yaml", tmp_path)
    path = tmp_path / "mine.yaml"

    def read():
        found = experiment.load(path)
        assert found.cells or found.probes
        for cell in found.cells[:20]:
            assert Cell.from_json(cell.to_json()) == cell
        return found

    texts = [file.read_text() for file in EXPERIMENTS.glob("*.yaml") if file.stem not in experiment.NOT_EXPERIMENTS]
    cases, _ = read_all(path, yamls([text for text in texts if len(text) < 4000]), read)
    count("files drawn for a reader", cases)


def test_claims(tmp_path, count):
    """Claims, or one line."""
    path, experiments = tmp_path / "claims.yaml", experiment.load_all()

    def read():
        found = claims.load(path)
        claims.check(found, experiments, path)
        return found

    entries = yaml.safe_load((EXPERIMENTS / "claims.yaml").read_text())["claims"]
    texts = [yaml.safe_dump({"claims": entries[start : start + 3]}) for start in range(0, len(entries), 3)]
    cases, _ = read_all(path, yamls(texts), read)
    count("files drawn for a reader", cases)


def test_overrides(tmp_path, count):
    """An experiment with other parameters, or one line."""
    for name in ("fidelity", "lemma1"):
        shutil.copy(EXPERIMENTS / f"{name}.yaml", tmp_path)
    cases = 0

    @given(overrides=st.dictionaries(st.sampled_from(PARAMETERS) | st.text(max_size=5), ANYTHING, max_size=2))
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


def test_parquet(make_cell, few_samples, tmp_path, count):
    """Damaged values are refused; what lies behind them, the file's own description, is read or refused."""
    path = tmp_path / "c.parquet"
    store.write_curve(make_cell(), simulate(make_cell(), few_samples), path, {"code": "x"})
    content = path.read_bytes()
    rows, metadata = store.read(path)
    end = len(content) - 8 - int.from_bytes(content[-8:-4], "little")  # of the values

    def read():
        found = store.read(path)
        assert rows.equals(found[0]) and metadata == found[1]
        return found

    cases, refusals = read_all(path, mutations(content[:end]).map(lambda values: values + content[end:]), read)
    assert refusals > cases // 2
    others, _ = read_all(
        path, mutations(content[end:]).map(lambda footer: content[:end] + footer), lambda: store.read(path)
    )
    count("files drawn for a reader", cases + others)


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
def test_data_files(name, file, form, tmp_path, count):
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

    cases, _ = read_all(path, mutations(content), read)
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
