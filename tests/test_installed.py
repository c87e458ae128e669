"""The package away from its checkout: installed, beside another one of its name, and in forked processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

MINE = """
title: mine
claim: none
grid: [{dataset: spambase, aggregator: average, workers: 1, rounds: 1, seeds: 1, declared_f: 0}]
figure: {kind: curves}
"""


def python(*arguments, path, folder, **environment):
    """A Python process that finds krum in `path`; what it printed, and whether it succeeded."""
    variables = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=120)


def copy(folder):
    shutil.copytree(ROOT / "krum", folder / "krum", ignore=shutil.ignore_patterns("__pycache__"))


def test_an_installed_package_works_from_anywhere(tmp_path):
    source, target, elsewhere = (tmp_path / name for name in ("source", "target", "elsewhere"))
    copy(source)
    for folder, files in (("experiments", "*.yaml"), ("data", "spambase.data.gz")):
        (source / folder).mkdir()
        for file in (ROOT / folder).glob(files):
            shutil.copy(file, source / folder)
    shutil.copy(ROOT / "pyproject.toml", source)
    elsewhere.mkdir()
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = python(*pip, "--target", target, source, path="", folder=elsewhere)
    assert done.returncode == 0, done.stderr
    (elsewhere / "mine.yaml").write_text(MINE)
    place = {"path": target, "folder": elsewhere}
    done = python("-m", "krum", "cells", "mine.yaml", **place)
    assert done.returncode == 0, done.stderr
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    cell = ["dataset=spambase", "aggregator=average", "rounds=1", "--device", "cpu"]
    done = python("-m", "krum.train", *cell, **place, **ranks)
    assert "round 1:" in done.stdout, done.stderr
    home = {"XDG_DATA_HOME": str(tmp_path / "home")}
    code = "from krum.simulation import datasets; datasets.load('mnist')"
    done = python("-c", code, **place, **home)
    assert f"{tmp_path}/home/krum/MNIST" in done.stderr, "where a download goes"


def test_another_package_of_the_same_name_is_noticed(tmp_path):
    copy(tmp_path)
    other = tmp_path / "krum-0.9.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: krum\nVersion: 0.9.1\n")
    done = python("-c", "import krum; krum.aggregate", path=tmp_path, folder=tmp_path)
    assert done.returncode == 0 and done.stderr.count("another package named krum is installed") == 1
    (tmp_path / "krum" / "__init__.py").write_text('"""The other one."""\n')
    done = python("-c", "import krum.errors", path=tmp_path, folder=tmp_path)
    assert "ImportError: another package named krum has overwritten files" in done.stderr.splitlines()[-1]


FORK = """
import multiprocessing, numpy, krum
vectors = numpy.random.default_rng(0).normal(size=(10, 100_000)).astype(numpy.float32)

def first(_):
    return float(krum.aggregate(vectors, "krum", f=2)[0])

expected = first(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(first, range(3)).get(timeout=60) == [expected] * 3
"""


def test_rules_work_in_forked_processes(tmp_path):
    """After the parent has used OpenMP's threads, which its children do not have."""
    (tmp_path / "fork.py").write_text(FORK)
    done = python("fork.py", path=ROOT, folder=tmp_path, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr
