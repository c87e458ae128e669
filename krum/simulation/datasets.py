"""The data sets: where their bytes come from, what proves them, and how they are split into folds.

Nothing here touches the network but `obtain`. Every reading checks every byte: files are the published ones or refused.
To add a data set, write one function here, decorate it, and describe the data in data/README.md.
"""

import gzip
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from krum.errors import InputError
from krum.registry import kebab, lookup
from krum.simulation import mnist_download

LARGEST_FILE = 2**26  # bytes, uncompressed, with room to spare: what is larger is not read to its end
DATA = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True)
class Samples:
    """A data set in memory: features [N, p] float32, labels [N] int64."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A registered data set."""

    name: str
    samples: int
    features: int
    classes: int
    standardise: bool  # by the training fold's mean and deviation
    model: Mapping[str, Any]  # what is trained on it by default: a model's name and options
    checksums: dict[str, str]  # file -> digest of its uncompressed bytes, "md5:..." or "sha256:..."
    read: Callable[[Path], Samples]  # from a folder
    fetch: Callable[[Path], None] | None  # writes the files below a folder


DATASETS: dict[str, Dataset] = {}


def dataset(*, fetch: Callable[[Path], None] | None = None, **facts: Any) -> Callable:
    """Register a function `(folder) -> Samples`; `facts` are the other fields of `Dataset`."""

    def decorate(function: Callable[[Path], Samples]) -> Callable[[Path], Samples]:
        DATASETS[kebab(function)] = Dataset(name=kebab(function), read=function, fetch=fetch, **facts)
        return function

    return decorate


@cache
def load(name: str, folder: Path = DATA) -> Samples:
    """The whole data set, every byte checked. Raises InputError where a file is missing or not the published one."""
    return lookup(DATASETS, name, "data set").read(folder)


def keep_in_memory() -> None:
    """Load every data set whose files are in order, for the children that this process forks."""
    for name in DATASETS:
        with suppress(InputError):
            load(name)


def obtain(name: str, folder: Path = DATA) -> dict[str, str]:
    """Make sure that the data set's files are there, fetching what is missing. Returns their checksums."""
    entry = lookup(DATASETS, name, "data set")
    missing = [file for file in entry.checksums if find(folder, file) is None]
    if missing and entry.fetch is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            entry.fetch(Path(scratch))
            for file in missing:
                if problem := _mismatch(Path(scratch, file).read_bytes(), entry.checksums[file]):
                    raise InputError(f"{name} download: {file}: {problem}; run the command again")
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                Path(scratch, file).replace(folder / file)
    for file in entry.checksums:
        read_checked(folder, name, file)
    return entry.checksums


def find(folder: Path, file: str) -> Path | None:
    """The user's or our copy of a data set's file, plain or compressed, if there is one."""
    for path in (folder / file, folder / Path(file).name):
        for candidate in (path, path.with_name(path.name + ".gz")):
            if candidate.is_file():
                return candidate
    return None


def read_checked(folder: Path, name: str, file: str) -> bytes:
    """The uncompressed bytes of one of a data set's files, if they are the published ones; InputError otherwise."""
    again = f"`python -m krum data {name}`"
    path = find(folder, file)
    if path is None:
        raise InputError(f"{folder / file}: not found; get it with {again}, or put a copy there")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except Exception as error:  # OSError, EOFError and, through gzip, zlib.error
        raise InputError(f"{path}: cannot be read ({error}); delete it and run {again}") from None
    if problem := _mismatch(content, DATASETS[name].checksums[file]):
        raise InputError(f"{path}: {problem}; delete it and run {again}")
    return content


def _mismatch(content: bytes, expected: str) -> str:
    """What is wrong with some bytes, in words; nothing where they have the expected digest."""
    found = digest(content, expected.partition(":")[0])
    return "" if found == expected else f"{len(content)} bytes with {found}, expected {expected}"


def digest(content: bytes, algorithm: str) -> str:
    """`algorithm:hexadecimal digest`."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def folds(labels: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified cross-validation: `count` pairs of (training indices, held-out indices).

    The seed decides the shuffle. The folds are those of scikit-learn's `StratifiedKFold(count, shuffle=True,
    random_state=seed)`, without its import, which takes as long as torch's.
    """
    rng = np.random.RandomState(seed)  # as scikit-learn does
    _, first, classes = np.unique(labels, return_index=True, return_inverse=True)
    classes = first.argsort().argsort()[classes]  # numbered in the order in which they appear
    in_order = np.sort(classes)
    held_out_by = np.empty(len(labels), np.int64)
    for number in range(len(first)):
        sizes = np.bincount(np.flatnonzero(in_order == number) % count, minlength=count)
        dealt = np.arange(count).repeat(sizes)
        rng.shuffle(dealt)
        held_out_by[classes == number] = dealt
    return [(np.flatnonzero(held_out_by != fold), np.flatnonzero(held_out_by == fold)) for fold in range(count)]


SPAMBASE: dict[str, Any] = {
    "samples": 4601,
    "features": 57,
    "classes": 2,
    "standardise": True,
    "model": {"name": "mlp", "hidden": [100, 100]},
    "checksums": {"spambase.data": "sha256:ebec58cfca94ea61c77df632314acae15bad410f4769d38b1a66cb41050e3431"},
}


@dataset(**SPAMBASE)
def spambase(folder: Path) -> Samples:
    """Spambase: 57 word and character frequencies of 4,601 e-mails, 39.4 % of them spam (class 1). CC BY 4.0."""
    text = read_checked(folder, "spambase", "spambase.data").decode("ascii")
    table = np.array([line.split(",") for line in text.split()], dtype=np.float64)
    return Samples(table[:, :-1].astype(np.float32), table[:, -1].astype(np.int64))


@dataset(**SPAMBASE)
def spambase_log(folder: Path) -> Samples:
    """Spambase with `log(1 + feature)`: the frequencies and run lengths are heavy-tailed."""
    plain = spambase(folder)
    return Samples(np.log1p(plain.features), plain.labels)


@dataset(
    samples=60_000,
    features=784,
    classes=10,
    standardise=False,
    model={"name": "mlp", "hidden": [100]},
    checksums={
        "MNIST/raw/train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
        "MNIST/raw/train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
        "MNIST/raw/t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
        "MNIST/raw/t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
    },
    fetch=mnist_download.download,
)
def mnist(folder: Path) -> Samples:
    """MNIST's 60,000 training images, 28 x 28 pixels in [0, 1], ten digits. CC BY-SA 3.0."""
    pixels = np.frombuffer(read_checked(folder, "mnist", "MNIST/raw/train-images-idx3-ubyte"), np.uint8, offset=16)
    labels = np.frombuffer(read_checked(folder, "mnist", "MNIST/raw/train-labels-idx1-ubyte"), np.uint8, offset=8)
    return Samples(np.divide(pixels.reshape(-1, 784), 255, dtype=np.float32), labels.astype(np.int64))
