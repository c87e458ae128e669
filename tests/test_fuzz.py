"""Everything that reads a file, on files that nobody wrote: an answer, or one line that names the file."""

import gzip
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from krum.errors import InputError
from krum.simulation import datasets
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
