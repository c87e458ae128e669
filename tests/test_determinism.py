"""The same seeds, the same bytes: whatever runs beside a job, in whatever order, and however often it was begun."""

import os
import subprocess
import sys

import pytest
import torch
from small_project import ROOT, results, snakemake

import krum.__main__ as cli
from krum.rules.aggregators import AGGREGATORS
from krum.simulation import models
from krum.simulation.attacks import ATTACKS, LASTING, LEAST_BYZANTINE
from krum.simulation.run import COLUMNS, simulate
from krum.suite import store


def written(cell, columns, path):
    """The bytes of a curve on disk."""
    store.write_curve(cell, columns, path, {})
    return path.read_bytes()


def rows_of(columns, seed):
    return {name: columns[name][columns["seed"] == seed] for name in COLUMNS}


CELLS = [
    {"aggregator": "krum", "attack": attack, "byzantine": byzantine, "declared_f": 4}
    for attack in ATTACKS
    if attack != "none"
    for byzantine in (LEAST_BYZANTINE[attack], 4)
]
CELLS += [{"aggregator": rule, "attack": "gaussian", "declared_f": 2, "byzantine": 2} for rule in AGGREGATORS]
CELLS += [
    {"aggregator": "krum", "attack": attack, "byzantine": 0, "fault_rate": 0.1}
    for attack in ("bit-flip", "sign-flip", "gaussian")
]
CELLS += [{"aggregator": "krum", "attack": "mimic", "byzantine": 1, "worker_momentum": 0.9}]
CELLS += [{"attack": "stale", "byzantine": 1, "worker_momentum": 0.9, "aggregator": "centred-clipping"}]
CELLS += [{"model_options": (("hidden", sizes),), "workers": 3, "declared_f": 0} for sizes in ((1,), (), (300, 300))]
CELLS += [  # one honest worker
    {"aggregator": rule, "attack": attack, "workers": 5, "byzantine": 4, "declared_f": 0}
    for rule in ("median", "multi-krum")
    for attack in ("gaussian", "sign-flip", "a-little-is-enough", "barycentre-collusion")
]
CELLS += [{"workers": 1, "aggregator": "average", "declared_f": 0, "batch_size": size} for size in (1, 40)]


@pytest.mark.parametrize("changes", CELLS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_threads_and_batches_change_no_byte(make_cell, few_samples, tmp_path, changes):
    """With 1 and 2 threads, a seed beside others and alone, in any order."""
    cell = make_cell(**{"rounds": 8, "evaluate_every": 4, **changes})
    before = torch.get_num_threads()
    first = simulate(cell, few_samples)
    try:
        torch.set_num_threads(2)
        threads = simulate(cell, few_samples)
        assert torch.get_num_threads() == 2, "left as it was"
    finally:
        torch.set_num_threads(before)
    expected = written(cell, first, tmp_path / "c.parquet")
    assert written(cell, threads, tmp_path / "c.parquet") == expected
    backwards = simulate(cell, few_samples, seeds=[2, 1, 0])
    for seed in range(cell.seeds):
        one = written(cell, rows_of(first, seed), tmp_path / "one.parquet")
        for other in (simulate(cell, few_samples, seeds=[seed]), rows_of(backwards, seed)):
            assert written(cell, other, tmp_path / "one.parquet") == one


def test_every_lasting_attack_and_fault_is_among_them():
    assert set(ATTACKS) - {"none"} == {cell.get("attack") for cell in CELLS} - {None} and set(ATTACKS) >= LASTING
    assert set(AGGREGATORS) == {cell["aggregator"] for cell in CELLS if "aggregator" in cell}


@pytest.mark.parametrize("columns", [1, 2, 3, 14, 16, 100])
@pytest.mark.parametrize("rows", [1, 2, 3, 20, 60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_has_its_bytes_in_any_stack(rows, columns, dtype):
    """MKL multiplies a stack of one as it likes."""
    for inner in (1, 3, 25, 26, 57, 257, 1000):
        one = torch.randn(5, rows, inner, dtype=dtype, generator=torch.Generator().manual_seed(0))
        other = torch.randn(5, columns, inner, dtype=dtype, generator=torch.Generator().manual_seed(1))
        for right in (other.mT, other.mT.contiguous()):
            stack = models.product(one, right)
            assert torch.allclose(stack, one @ right, rtol=1e-3, atol=1e-4)
            for number in range(5):
                alone = models.product(one[number : number + 1].clone(), right[number : number + 1].clone())
                assert torch.equal(alone[0], stack[number])


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
