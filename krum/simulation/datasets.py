"""The data sets: where their bytes come from, what proves them, and how they are split into folds.

Only `obtain` touches the network. Every reading checks every byte: files are the published ones or refused.
A checkout keeps them in its data/; for an installed package they are in the user's folder `~/.local/share/krum` (or
`$XDG_DATA_HOME/krum`), but for Spambase, which comes with it.
To add a data set, write one function here, decorate it, and describe the data in data/README.md.
"""

import gzip
import hashlib
import os
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

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "data"  # what comes with an installed package; a checkout has no such folder
if INSTALLED.is_dir():
    DATA = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "krum"
else:
    DATA = PACKAGE.parent / "data"
LARGEST_FILE = 2**26  # bytes, uncompressed, with room to spare: what is larger is not read to its end


@dataclass(frozen=True)
class Samples:
    """A data set in memory: features [N, p] float32, labels [N] int64."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A registered data set."""

    name: str
    read: Callable[[Path], Samples]  # from a folder
    samples: int
    features: int
    classes: int
    standardise: bool  # by the training fold's mean and deviation
    model: Mapping[str, Any]  # what is trained on it by default: a model's name and options
    checksums: dict[str, str]  # file -> digest of its uncompressed bytes, "md5:..." or "sha256:..."
    fetch: Callable[[Path], None] | None = None  # writes the files below a folder


DATASETS: dict[str, Dataset] = {}


def dataset(**facts: Any) -> Callable:
    """Register a function `(folder) -> Samples`; `facts` are the other fields of `Dataset`."""

    def decorate(read: Callable[[Path], Samples]) -> Callable[[Path], Samples]:
        DATASETS[kebab(read)] = Dataset(kebab(read), read, **facts)
        return read

    return decorate


@cache
def load(name: str, folder: Path = DATA) -> Samples:
    """The whole data set, every byte checked. Raises InputError where a file is missing or not the published one."""
    return lookup(DATASETS, name, "data set").read(folder)


def keep_in_memory() -> None:
    """Load every data set whose files are in order, for the children that this process forks."""
    for name in DATASETS:
        with suppress(InputError):
            folds(load(name).labels, 2, 0)  # imports scikit-learn


def obtain(name: str, folder: Path = DATA) -> dict[str, str]:
    """Fetch the data set's files that are missing, check all, return their checksums. Raises InputError."""
    entry = lookup(DATASETS, name, "data set")
    missing = [file for file in entry.checksums if find(folder, file) is None]
    if missing and entry.fetch is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            entry.fetch(Path(scratch))
            for file in missing:
                read_checked(Path(scratch), entry.name, file)
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                Path(scratch, file).replace(folder / file)
    for file in entry.checksums:
        read_checked(folder, entry.name, file)
    return entry.checksums


def find(folder: Path, file: str) -> Path | None:
    """A data set's file, plain or compressed, in the subfolder that it was published in or without it."""
    places = [root / name for root in (folder, INSTALLED) for name in (file, Path(file).name)]
    copies = [copy for place in places for copy in (place, place.with_name(f"{place.name}.gz"))]
    return next((copy for copy in copies if copy.is_file()), None)


def read_checked(folder: Path, name: str, file: str) -> bytes:
    """The uncompressed bytes of one of a data set's files, if they are the published ones; InputError otherwise."""
    path = find(folder, file)
    if path is None:
        raise InputError(f"{folder / file}: not found; get it with `python -m krum data {name}`, or put a copy there")
    expected = DATASETS[name].checksums[file]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except Exception as error:  # OSError, EOFError and, through gzip, zlib.error
        problem = f"cannot be read ({error})"
    else:
        checksum = digest(content, expected.partition(":")[0])
        if checksum == expected:
            return content
        problem = f"{len(content)} bytes with {checksum}, expected {expected}"
    raise InputError(f"{path}: {problem}; delete it and run `python -m krum data {name}`")


def digest(content: bytes, algorithm: str) -> str:
    """`algorithm:hexadecimal digest`."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def folds(labels: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified cross-validation: `count` pairs of (training indices, held-out indices); the seed shuffles."""
    from sklearn.model_selection import StratifiedKFold  # `krum.aggregate` does without scikit-learn

    return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))


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
