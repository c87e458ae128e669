"""The same seeds, the same bytes: whatever runs beside a job, in whatever order, and however often it was begun."""

import os
import subprocess
import sys

import torch
from small_project import ROOT, results, snakemake

import krum.__main__ as cli
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.run import simulate
from krum.suite import store

CELLS = [
    *({"attack": name, "byzantine": 4, "declared_f": 4} for name in ATTACKS if name != "none"),
    *({"aggregator": rule, "attack": "gaussian", "declared_f": 2, "byzantine": 2} for rule in AGGREGATORS),
    *({"attack": attack, "byzantine": 0, "fault_rate": 0.1} for attack in ("bit-flip", "sign-flip", "gaussian")),
    {"attack": "stale", "byzantine": 1, "worker_momentum": 0.9, "aggregator": "centred-clipping"},
    {"model_options": (("hidden", (300, 300)),), "workers": 3, "declared_f": 0},
    {"model_options": (("hidden", ()),), "workers": 1, "aggregator": "average", "declared_f": 0, "batch_size": 40},
    {"aggregator": "multi-krum", "attack": "barycentre-collusion", "workers": 5, "byzantine": 4, "declared_f": 0},
]


def test_threads_change_no_byte_of_a_curve(make_cell, few_samples, tmp_path):
    """With 1 and 2 threads, whatever the process computed before."""

    def written(cell):
        store.write_curve(cell, simulate(cell, few_samples), tmp_path / "c.parquet", {})
        return (tmp_path / "c.parquet").read_bytes()

    for changes in CELLS:
        cell = make_cell(**{"rounds": 6, "evaluate_every": 3, **changes})
        first, before = written(cell), torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert written(cell) == first, changes
            assert torch.get_num_threads() == 2, "left as it was"
        finally:
            torch.set_num_threads(before)


def test_cores_and_order_change_no_byte(project, tmp_path_factory):
    """One core and two, the last curve first, with OpenMP told to use two threads."""
    joined = ["results/small.parquet", "results/the-other.parquet"]
    snakemake(project, *joined)
    expected = results(project)
    last_first = [str(path) for path in reversed(list(expected)) if path.parent.name == "curves"]
    again = tmp_path_factory.mktemp("again") / "project"
    subprocess.run(["cp", "-r", str(project), str(again)], check=True)
    for folder in ("results", ".snakemake"):
        subprocess.run(["rm", "-r", str(again / folder)], check=True)
    command = [sys.executable, "-m", "snakemake", "--cores", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    for targets in (last_first[:3], joined):
        subprocess.run([*command, *targets], cwd=again, env=environment, check=True, capture_output=True)
    assert results(again) == expected


def test_a_curve_says_how_far_it_can_be_repeated(make_cell, tmp_path):
    """On a CPU to the byte; on a GPU to rounding, where the order of sums is the hardware's."""
    path = tmp_path / "one.parquet"
    assert cli.main(["curve", "--cell", make_cell().to_json(), "--output", str(path), "--device", "cpu"]) == 0
    _, metadata = store.read(path)
    assert (metadata["device"], metadata["repeats"]) == ("cpu", "to the byte, on this machine with these libraries")
    assert "repeats" in (ROOT / "results" / "README.md").read_text()
