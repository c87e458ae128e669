"""Real processes: the same choice as in one place however coordinates lie, and clear words where a rank fails."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import real_processes
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import krum
import krum.ddp
import krum.parallel
import krum.sharded
import krum.train
from krum.distributed import communication, processes
from krum.errors import InputError
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.parameters import make_cell
from krum.simulation.run import simulate
from krum.suite.probes import run_probe

ROOT = Path(__file__).resolve().parent.parent
RANKS, N, D, F = 4, 11, 103, 2
CUTS = {  # number of ranks -> where the coordinates of the flat vectors are cut
    1: [[]],
    2: [[50], [0], [103]],
    4: [[25, 50, 75], [1, 2, 90], [0, 50, 50], [40, 103, 103]],
}
OPTIONS = {"1-p-krum": {"round": 3, "coin": 0.4}, "centred-clipping": {"radius": 5.0}}


def vectors(seed=0):
    """Honest vectors with a common part, two of them the same, and two far ones."""
    rng = np.random.default_rng(seed)
    drawn = 10 + rng.normal(size=(N, D))
    drawn[3] = drawn[7]
    drawn[:F] = -40 * rng.normal(size=(F, D))
    return torch.from_numpy(drawn.astype(np.float32))


def everyones(tensor):
    """All ranks' tensors, stacked."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return torch.stack(gathered)


# ------------------------------------------------------------------- what is checked inside of four processes, by all

CHECKS = {}


def in_four_processes(check):
    CHECKS[check.__name__] = check
    return check


@in_four_processes
def every_rule_chooses_as_in_one_place(rank):
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in CUTS}
    whole, last = vectors(), vectors(1)[5]
    for name, rule in AGGREGATORS.items():
        options = OPTIONS.get(name, {})
        for previous in ({}, {"previous": last}) if rule.previous else ({},):
            expected = krum.aggregate(whole, name, f=F, **options, **previous)
            for ranks, cut in [(ranks, cut) for ranks, cuts in CUTS.items() for cut in cuts if rank < ranks]:
                local = whole.tensor_split(cut, 1)[rank]
                sliced = {key: value.tensor_split(cut)[rank] for key, value in previous.items()}
                result = krum.sharded.aggregate(local, name, F, group=groups[ranks], **options, **sliced)
                assert torch.allclose(result, expected.tensor_split(cut)[rank], rtol=1e-5, atol=1e-5), (name, cut)
                if rule.sees == "distances" and not rule.previous:
                    weights = krum.sharded.weights(local, name, F, group=groups[ranks], **options)
                    centred = whole.double() - whole.double().mean(0)
                    expected_weights = krum.weights(centred @ centred.T, name, F, **options)
                    assert torch.allclose(weights, expected_weights, atol=1e-6), (name, cut)


@in_four_processes
def ranks_agree_where_each_slice_by_itself_would_choose_another_vector(rank):
    whole = torch.ones(N, 8) + 0.01 * torch.arange(N)[:, None]
    for worker in range(N):
        whole[worker, 2 * (worker % 4) : 2 * (worker % 4) + 2] += 5
    local = whole.tensor_split(RANKS, 1)[rank]
    by_slice = everyones(krum.weights(local.double() @ local.double().T, "krum", F))
    assert len(set(by_slice.argmax(1).tolist())) > 1
    together = everyones(krum.sharded.weights(local, "krum", F))
    assert bool((together == together[0]).all())


@in_four_processes
def structures_keep_their_form_and_inputs_their_numbers(rank):
    whole = vectors()
    local = whole.tensor_split(RANKS, 1)[rank]
    before = local.clone()
    parts = {"a": local[:, :10].reshape(N, 2, 5), "b": local[:, 10:]}
    for name in ("multi-krum", "median"):
        result = krum.sharded.aggregate(parts, name, F)
        assert list(result) == ["a", "b"] and result["a"].shape == (2, 5)
        expected = krum.aggregate(whole, name, f=F).tensor_split(RANKS)[rank]
        assert torch.allclose(torch.cat([result["a"].flatten(), result["b"]]), expected)
        as_list = krum.sharded.aggregate(list(parts.values()), name, F)
        assert isinstance(as_list, list) and torch.equal(as_list[1], result["b"])
    assert torch.equal(local, before)


@in_four_processes
def dtensors_stand_for_their_local_parts(rank):
    whole = vectors()[:, :102].reshape(N, 17, 6)
    mesh = init_device_mesh("cpu", (RANKS,))
    result = krum.sharded.aggregate(distribute_tensor(whole, mesh, [Shard(1)]), "krum", F)
    assert result.placements == (Shard(0),) and result.shape == (17, 6)
    assert torch.equal(result.full_tensor(), krum.aggregate(whole.flatten(1), "krum", f=F).view(17, 6))
    for wrong in (Replicate(), Shard(0)):
        with pytest.raises(InputError, match="sharded along a parameter's dimension"):
            krum.sharded.aggregate(distribute_tensor(whole, mesh, [wrong]), "krum", F)


@in_four_processes
def nan_in_one_slice_counts_on_all_ranks(rank):
    local = vectors().tensor_split(RANKS, 1)[rank].clone()
    if rank == 2:
        local[5, 1] = torch.nan
    assert krum.sharded.weights(local, "krum", F)[5] == 0
    for name in ("krum", "median", "bulyan"):
        assert bool(krum.sharded.aggregate(local, name, F).isfinite().all())
    if rank == 1:
        local[6:9] = torch.inf
    for name in ("krum", "median", "bulyan"):
        with pytest.raises(InputError, match="4 vectors hold NaN or infinity"):
            krum.sharded.aggregate(local, name, F)


@in_four_processes
def flat_gradients_of_any_length_are_aggregated_in_place(rank):
    for length in (1, 3, 4, 5, 1001):
        gradients = torch.from_numpy(np.random.default_rng(length).normal(size=(RANKS, length))).float()
        for name in ("krum", "average", "median", "geometric-median", "centred-clipping"):
            flat = gradients[rank].clone()
            assert krum.ddp.aggregate_(flat, name, 0) is flat
            assert torch.allclose(flat, krum.aggregate(gradients, name, f=0), rtol=1e-4, atol=1e-5), (name, length)
    for flat, options, words in (
        (torch.zeros(3, 2), {}, r"flat: found \(3, 2\)"),
        (torch.zeros(3), {"f": 1}, "needs 2f"),
        (torch.zeros(3), {"f": 0, "radius": 1.0}, "unknown option 'radius'"),
    ):
        with pytest.raises(InputError, match=words):
            krum.ddp.aggregate_(flat, "krum", **options)


@in_four_processes
def ddp_applies_krum_to_whole_gradients(rank):
    """Many small buckets: the choice is one for all of them."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(50, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    model = torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.02)
    krum.parallel.aggregate_with(model, "krum", f=0)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        x, y = torch.randn(8, 50), torch.randint(10, (8,))
        gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), list(net.parameters()))
        expected = krum.aggregate(everyones(torch.cat([part.flatten() for part in gradient])), "krum", f=0)
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        assert torch.equal(torch.cat([part.grad.flatten() for part in net.parameters()]), expected)
        with torch.no_grad():
            for part in net.parameters():
                part -= 0.1 * part.grad
    for arguments, words in (
        ((model, "krum", 0), "has a communication hook already"),
        ((model, "krum", 1), "needs 2f"),
        ((net, "krum", 0), "found Sequential; wrap it"),
    ):
        with pytest.raises(InputError, match=words):
            krum.ddp.aggregate_with(*arguments)


@in_four_processes
def real_workers_train_the_simulated_model(rank):
    cases = (("krum", "none", 0), ("krum", "sign-flip", 0), ("median", "omniscient", 1), ("average", "sign-flip", 0))
    for aggregator, attack, f in cases:
        parameters = {"dataset": "spambase", "aggregator": aggregator, "attack": attack, "declared_f": f}
        cell = make_cell({**parameters, "workers": RANKS, "byzantine_fraction": 0.25, "rounds": 30})
        rows = krum.train.train(cell, seed=3, device="cpu")
        if rank == 0:
            expected = simulate(cell, seeds=[3], device="cpu")
            assert rows[-1]["test_loss"] == pytest.approx(expected["test_loss"][-1], rel=1e-3), (aggregator, attack)
            assert rows[-1]["test_error"] == pytest.approx(expected["test_error"][-1], abs=0.005), (aggregator, attack)


def run_checks(folder):
    real_processes.run(CHECKS, folder)


def test_in_four_processes(tmp_path):
    failures = real_processes.failures(run_checks, RANKS, tmp_path)
    assert not failures, "\n".join(failures.values())


# ------------------------------------------------------------------------------------------ what is seen from outside


def test_one_process_needs_no_group():
    assert torch.equal(krum.sharded.aggregate(vectors(), "krum", F), krum.aggregate(vectors(), "krum", f=F))
    with pytest.raises(InputError, match=r"call torch.distributed.init_process_group first"):
        krum.ddp.aggregate_(vectors()[0], "krum", F)


def test_bad_slices_are_refused():
    cases = [
        ([], InputError, "found none"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "torch.int64"),
        ([torch.ones(3, 2), torch.ones(4, 2)], InputError, r"found \[3, 4\] vectors"),
        (torch.tensor(1.0), InputError, r"found \[0\] vectors"),
        ({"a": [1.0]}, TypeError, "found list"),
    ]
    for slices, error, words in cases:
        with pytest.raises(error, match=words):
            krum.sharded.aggregate(slices, "krum", 1)
    with pytest.raises(InputError, match="previous: found shapes"):
        krum.sharded.aggregate(vectors(), "centred-clipping", F, radius=1.0, previous=torch.zeros(D + 1))
    with pytest.raises(InputError, match="has no weights"):
        krum.sharded.weights(vectors(), "median", F)


def fail_in_the_second_process():
    if dist.get_rank() == 1:
        raise ValueError("no neurons left")
    dist.barrier()


def test_error_of_one_process_is_told_and_ends_the_others():
    with pytest.raises(InputError, match="in 2 processes: ValueError: no neurons left"):
        processes.together(fail_in_the_second_process, 2)


FAULTY_RANK = """
import os, sys, time
from krum import train
from krum.distributed import sharded
aggregate, calls = sharded.aggregate, []

def faulty(*arguments, **options):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        {fault}
    return aggregate(*arguments, **options)

sharded.aggregate = faulty
sys.exit(train.main(["dataset=spambase", "aggregator=krum", "declared_f=0", "rounds=5", "--timeout", "5"]))
"""


@pytest.mark.parametrize("fault", ["os._exit(3)", "time.sleep(600)"], ids=["dies", "hangs"])
def test_failed_rank_raises_on_all_ranks(fault, tmp_path):
    (tmp_path / "faulty.py").write_text(FAULTY_RANK.format(fault=fault))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = []
    for rank in map(str, range(3)):
        environment = {**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(tmp_path / "faulty.py")]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for rank in (0, 2):
            _, words = ranks[rank].communicate(timeout=100)
            assert ranks[rank].returncode == 1
            assert f"error: rank {rank}: another rank died, or did not answer within 5 s" in words
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def test_bad_arguments_are_refused_before_any_rank_waits(monkeypatch, capsys):
    cases = [
        (["dataset"], "give parameter=value"),
        (["workers=3"], "workers are the ranks"),
        (["dataset=spambas", "aggregator=krum", "declared_f=0"], "did you mean 'spambase'?"),
        (["dataset=spambase", "agregator=krum"], "agregator"),
        (["dataset=spambase", "aggregator=krum", "declared_f=1"], "needs 2f + 2 < n"),
        (["dataset=spambase", "aggregator=krum", "declared_f=0", "fault_rate=0.1", "attack=gaussian"], "simulated"),
    ]
    monkeypatch.setattr(os, "_exit", sys.exit)
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, value in group.items():
        monkeypatch.setenv(key, value)
    for arguments, words in cases:
        with pytest.raises(SystemExit) as ended:
            krum.train.main([*arguments, "--timeout", "3"])
        error = capsys.readouterr().err
        assert ended.value.code == 1 and words in error and error.count("\n") == 1


def test_split_model_trains_as_the_whole_one():
    rows = run_probe("split", 0, {"rounds": 50})
    assert [row["round"] for row in rows] == [0, 25, 50]
    assert all(row["difference"] < 0.003 and row["agreed"] == 1 for row in rows)
    assert rows[-1]["test_error"] < rows[0]["test_error"]
    assert run_probe("split", 0, {"rounds": 25, "slices": "apart"})[-1]["agreed"] < 1


def test_bytes_on_the_wire_are_those_of_the_formula():
    for _ in range(5):  # others may use the interface, too, and a rank that is held up begins to count too late
        rows = {row["method"]: row for row in processes.together(communication.measure, 3, 1_000_000, 3)}
        assert set(rows) == {"averaging", "gathered", "in-parts"} and all(row["seconds"] > 0 for row in rows.values())
        counted = np.array([row["bytes"] / row["formula"] for row in rows.values()])
        if not (np.abs(counted - 1) > 0.05).any():  # or NaN, where the system does not tell
            break
    else:
        pytest.fail(f"counted over formula: {counted}")
    assert rows["in-parts"]["formula"] < 1.001 * rows["averaging"]["formula"] < rows["gathered"]["formula"]
