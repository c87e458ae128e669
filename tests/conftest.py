import fcntl
import os
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_project
import torch
from hypothesis import settings

import krum  # noqa: F401  first of all, for what it sets before the first matrix product
from krum.simulation.datasets import Samples
from krum.simulation.gradients import flatten
from krum.simulation.parameters import Cell
from krum.simulation.round import start, step

torch.set_num_threads(1)

CELL = Cell(
    dataset="spambase",
    model="mlp",
    model_options=(("hidden", (7, 5)),),
    aggregator="krum",
    aggregator_options=(),
    attack_options=(),
    workers=11,
    byzantine=0,
    declared_f=4,
    batch_size=2,
    rounds=20,
    evaluate_every=10,
    folds=3,
    seeds=3,
)
COUNTED = "counted: "
RELIABILITY = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"

# Every run of CI draws the same cases; `make torture` draws others each time, and prints how to repeat a failure.
settings.register_profile("ordinary", deadline=None, derandomize=True, max_examples=25)
settings.register_profile("torture", deadline=None, print_blob=True, max_examples=2000)


def pytest_addoption(parser):
    parser.addoption("--torture", action="store_true", help="many more cases and kills; writes docs/reliability.md")


def pytest_configure(config):
    settings.load_profile("torture" if config.getoption("--torture") else "ordinary")


@pytest.fixture
def torture(request):
    """Whether this is the long run."""
    return request.config.getoption("--torture")


@pytest.fixture
def count(record_property):
    """`count("drawn cases", 100)`: what the summary adds up over all tests, whichever process they ran in."""
    return lambda what, number=1: record_property(COUNTED + what, number)


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """Print the counts; the long run also writes them into docs/reliability.md."""
    totals = Counter()
    for report in terminalreporter.getreports("passed"):
        for key, number in report.user_properties if report.when == "call" else ():
            if key.startswith(COUNTED):
                totals[key.removeprefix(COUNTED)] += number
    for what, number in sorted(totals.items()):
        terminalreporter.line(f"survived: {number:>9,} {what}")
    if config.getoption("--torture") and exitstatus == 0:
        table = "".join(f"| {what} | {number:,} |\n" for what, number in sorted(totals.items()))
        page, places = re.subn(
            r"(<!-- counts: [^\n]*\n).*?(<!-- end of the counts -->)",
            lambda match: f"{match[1]}| survived | number |\n|---|---:|\n{table}{match[2]}",
            RELIABILITY.read_text(encoding="utf-8"),
            flags=re.DOTALL,
        )
        assert places == 1, f"{RELIABILITY} has no place for the counts"
        RELIABILITY.write_text(page, encoding="utf-8")


@pytest.fixture
def make_cell():
    """A small cell, with changes; naming an attack makes 4 of its 11 workers Byzantine."""

    def make(**changes):
        if changes.get("attack", "none") != "none":
            changes = {"byzantine": 4, "byzantine_fraction": 0.4, **changes}
        return replace(CELL, **changes)

    return make


@pytest.fixture
def project(tmp_path):
    """A copy of the project with two small experiments that share two cells."""
    return small_project.make(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Such a copy whose workflow has run, once for all of pytest's processes; it is not to be changed."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            start = time.monotonic()
            small_project.snakemake(small_project.make(folder / "finished"))
            (folder / "finished" / "seconds").write_text(str(time.monotonic() - start))
    return folder / "finished"


@pytest.fixture(scope="session")
def few_samples():
    """90 samples of Spambase's shape whose label depends on the features."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(90, 57)).astype(np.float32)
    return Samples(features, (features[:, :5].sum(1) > 0).astype(np.int64))


@pytest.fixture
def assert_same_alone(few_samples):
    """Whether, after one step in float64, seed 1 beside two others and seed 1 alone agree to 1e-9."""

    def check(cell, case):
        together = start(cell, few_samples, seeds=range(3), dtype=torch.float64)
        alone = start(cell, few_samples, seeds=[1], dtype=torch.float64)
        step(together), step(alone)
        one, other = flatten(together.parameters)[1], flatten(alone.parameters)[0]
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True), case

    return check
