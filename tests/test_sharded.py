"""Krum over processes: the same choice as in one place, however coordinates lie; clear words where a rank fails."""

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import krum
from krum.distributed import ddp as parallel
from krum.distributed import processes, sharded
from krum.distributed.train import Worker
from krum.errors import InputError
from krum.rules.aggregators import AGGREGATORS
from krum.rules.distances import squared_distances
from krum.simulation.engine import simulate
from krum.suite import experiment, probes

ROOT = Path(__file__).resolve().parent.parent
RANKS, N, D, F = 4, 11, 103, 2
CUTS = {  # where the coordinates of the flat vectors are cut, for each number of ranks
    1: [[]],
    2: [[50], [1], [0], [103]],
    4: [[25, 50, 75], [1, 2, 90], [0, 50, 50], [40, 103, 103]],
}
OPTIONS = {"1-p-krum": {"round": 3, "coin": 0.4}, "centred-clipping": {"radius": 5.0}}


def _rank(rank, folder, checks):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=40)
    )
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in CUTS}
    for check in checks:
        try:
            check(rank, groups)
        except Exception:
            Path(folder, f"{check.__name__}-{rank}").write_text(traceback.format_exc())
        dist.barrier()
    dist.destroy_process_group()


def vectors(seed=0):
    """Honest vectors with a common part, two far ones; two that are the same."""
    rng = np.random.default_rng(seed)
    drawn = 10 + rng.normal(size=(N, D))
    drawn[3] = drawn[7]
    drawn[:F] = -40 * rng.normal(size=(F, D))
    return torch.from_numpy(drawn.astype(np.float32))


def every_rule_chooses_as_in_one_place(rank, groups):
    for seed in range(3):
        whole = vectors(seed)
        for name, rule in AGGREGATORS.items():
            options = OPTIONS.get(name, {})
            expected = krum.aggregate(whole, name, f=F, **options)
            for ranks, cuts in CUTS.items():
                if rank >= ranks:
                    continue
                for cut in cuts:
                    own = whole.tensor_split(cut, 1)[rank]
                    found = sharded.aggregate(own, name, F, group=groups[ranks], **options)
                    assert torch.allclose(found, expected.tensor_split(cut)[rank], rtol=1e-5, atol=1e-5), (name, cut)
                    if rule.sees == "distances" and not rule.previous:
                        weights = sharded.weights(own, name, F, group=groups[ranks], **options)
                        assert torch.equal(weights > 0, rule(squared_distances(whole), F, **options) > 0), (name, cut)


def a_choice_on_each_slice_alone_is_another(rank, groups):
    """The tempting shortcut: with vectors that are far in different slices, each slice takes another one."""
    whole = torch.ones(N, 8) + 0.01 * torch.arange(N)[:, None]
    for worker in range(N):
        whole[worker, 2 * (worker % 4) : 2 * (worker % 4) + 2] += 5
    own = whole.tensor_split(RANKS, 1)[rank]
    together = sharded.weights(own, "krum", F)
    alone = krum.weights(own.double() @ own.double().T, "krum", F)
    winners = [torch.empty_like(alone) for _ in range(RANKS)]
    dist.all_gather(winners, alone)
    assert len({int(w.argmax()) for w in winners}) > 1
    every = [torch.empty_like(together) for _ in range(RANKS)]
    dist.all_gather(every, together)
    assert all(torch.equal(one, together) for one in every)


def structures_keep_their_form(rank, groups):
    whole = vectors()
    expected = krum.aggregate(whole, "multi-krum", f=F).tensor_split(RANKS)[rank]
    own = whole.tensor_split(RANKS, 1)[rank]
    parts = {"a": own[:, :10].reshape(N, 2, 5), "b": own[:, 10:]}
    found = sharded.aggregate(parts, "multi-krum", F)
    assert list(found) == ["a", "b"] and found["a"].shape == (2, 5)
    assert torch.allclose(torch.cat([found["a"].flatten(), found["b"]]), expected)
    as_list = sharded.aggregate(list(parts.values()), "multi-krum", F)
    assert isinstance(as_list, list) and torch.equal(as_list[1], found["b"])
    before = own.clone()
    sharded.aggregate(own, "krum", F)
    assert torch.equal(own, before)


def dtensors_stand_for_their_local_parts(rank, groups):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    whole = vectors()[:, :102].reshape(N, 17, 6)
    mesh = init_device_mesh("cpu", (RANKS,))
    placed = distribute_tensor(whole, mesh, [Shard(1)])
    found = sharded.aggregate(placed, "krum", F)
    assert found.placements == (Shard(0),) and found.shape == (17, 6)
    assert torch.equal(found.full_tensor(), krum.aggregate(whole.flatten(1), "krum", f=F).view(17, 6))
    for wrong in (Replicate(), Shard(0)):
        with pytest.raises(InputError, match="sharded along a parameter's dimension"):
            sharded.aggregate(distribute_tensor(whole, mesh, [wrong]), "krum", F)


def a_nan_in_one_slice_counts_in_all(rank, groups):
    own = vectors().tensor_split(RANKS, 1)[rank].clone()
    if rank == 2:
        own[5, 1] = torch.nan
    assert sharded.weights(own, "krum", F)[5] == 0
    for name in ("krum", "median", "bulyan"):
        assert bool(sharded.aggregate(own, name, F).isfinite().all())
    if rank == 1:
        own[6:9] = torch.inf
    for name in ("krum", "median", "bulyan"):  # on every rank, not only where they lie
        with pytest.raises(InputError, match="4 vectors hold NaN or infinity"):
            sharded.aggregate(own, name, F)


def a_flat_gradient_of_any_length_comes_back_whole(rank, groups):
    for length in (1, 3, 4, 5, 1001):
        gradients = torch.from_numpy(np.random.default_rng(length).normal(size=(RANKS, length))).float()
        for name in ("krum", "average", "median", "geometric-median", "centred-clipping"):
            found = parallel.aggregate_(gradients[rank].clone(), name, 0)
            assert torch.allclose(found, krum.aggregate(gradients, name, f=0), rtol=1e-4, atol=1e-5), (name, length)


def ddp_takes_the_whole_gradients_krum(rank, groups):
    """Many small buckets: the choice is one for all of them. A model of the reader's own, in two lines."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(50, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    model = torch.nn.parallel.DistributedDataParallel(net, bucket_cap_mb=0.02)
    parallel.aggregate_with(model, "krum", f=0)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        x, y = torch.randn(8, 50), torch.randint(10, (8,))
        own = torch.autograd.grad(torch.nn.functional.cross_entropy(net(x), y), list(net.parameters()))
        flat = torch.cat([part.flatten() for part in own])
        every = [torch.empty_like(flat) for _ in range(RANKS)]
        dist.all_gather(every, flat)
        expected = krum.aggregate(torch.stack(every), "krum", f=0)
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        assert torch.equal(torch.cat([part.grad.flatten() for part in net.parameters()]), expected)
        with torch.no_grad():
            for part in net.parameters():
                part -= 0.1 * part.grad
    with pytest.raises(InputError, match="needs 2f"):
        parallel.aggregate_with(model, "krum", f=1)
    with pytest.raises(InputError, match="needs the last aggregate"):
        parallel.aggregate_with(model, "centred-clipping", f=1)


def real_workers_train_the_simulated_model(rank, groups):
    cases = (("krum", "none", 0), ("krum", "sign-flip", 0), ("median", "omniscient", 1), ("average", "sign-flip", 0))
    for aggregator, attack, f in cases:
        parameters = {"dataset": "spambase", "aggregator": aggregator, "attack": attack, "declared_f": f}
        cell = experiment.one_cell({**parameters, "workers": RANKS, "byzantine_fraction": 0.25, "rounds": 30})
        worker = Worker(cell, rank, seed=3)
        for _ in range(30):
            worker.train_one_round()
        found = worker.record()
        expected = simulate(cell, seeds=[3])
        assert found["test_loss"][0] == pytest.approx(expected["test_loss"][-1], rel=1e-3), (aggregator, attack)
        assert found["test_error"][0] == pytest.approx(expected["test_error"][-1], abs=0.005), (aggregator, attack)


CHECKS = [
    every_rule_chooses_as_in_one_place,
    a_choice_on_each_slice_alone_is_another,
    structures_keep_their_form,
    dtensors_stand_for_their_local_parts,
    a_nan_in_one_slice_counts_in_all,
    a_flat_gradient_of_any_length_comes_back_whole,
    ddp_takes_the_whole_gradients_krum,
    real_workers_train_the_simulated_model,
]


@pytest.fixture(scope="module")
def failures():
    """All checks in four gloo processes, started once: where a check failed, its rank's traceback."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            mp.spawn(_rank, (folder, CHECKS), nprocs=RANKS)
        except mp.ProcessRaisedException as error:  # one rank failed, and another one waited for it in vain
            failed = {path.name: path.read_text() for path in Path(folder).glob("*-*")}
            return failed or dict.fromkeys((f"{check.__name__}-all" for check in CHECKS), str(error))
        return {path.name: path.read_text() for path in Path(folder).glob("*-*")}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_four_processes(check, failures):
    mine = [text for name, text in failures.items() if name.rpartition("-")[0] == check.__name__]
    assert not mine, mine[0]


def test_one_process_needs_no_group():
    assert torch.equal(sharded.aggregate(vectors(), "krum", F), krum.aggregate(vectors(), "krum", f=F))


@pytest.mark.parametrize(
    "slices, error, words",
    [
        ([], InputError, "found none"),
        (torch.ones(3, 2, dtype=torch.int64), TypeError, "torch.int64"),
        ([torch.ones(3, 2), torch.ones(4, 2)], InputError, r"found \[3, 4\] vectors"),
        (torch.tensor(1.0), InputError, "found a number"),
        ({"a": [1.0]}, TypeError, "found list"),
    ],
)
def test_bad_slices(slices, error, words):
    with pytest.raises(error, match=words):
        sharded.aggregate(slices, "krum", 1)


FAULTY = textwrap.dedent(
    """
    import os, sys, time
    from krum.distributed import train
    class Faulty(train.Worker):
        def train_one_round(self):
            if self.round == 2 and self.rank == 1:
                {fault}
            super().train_one_round()
    train.Worker = Faulty
    sys.exit(train.main(["dataset=spambase", "aggregator=krum", "declared_f=0", "rounds=5", "--timeout", "5"]))
    """
)


@pytest.mark.parametrize("fault", ["os._exit(3)", "time.sleep(600)"], ids=["dies", "hangs"])
def test_a_rank_that_fails_ends_the_others_with_a_word(fault, tmp_path):
    script, ranks, start = tmp_path / "faulty.py", [], time.monotonic()
    script.write_text(FAULTY.format(fault=fault))
    port = free_port()
    for rank in range(3):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **own, "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script)]
        stderr = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
        ranks.append(subprocess.Popen(command, env=environment, stderr=stderr, text=True, cwd=ROOT))
    try:
        _, words = ranks[0].communicate(timeout=50)
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert ranks[0].returncode == 1 and time.monotonic() - start < 50
    assert "error: rank 0: another rank died, or did not answer within 5 s" in words


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["dataset"], "give parameter=value"),
        (["workers=3"], "workers are the ranks"),
        (["dataset=spambas", "aggregator=krum", "declared_f=0"], "did you mean 'spambase'?"),
        (["dataset=spambase", "agregator=krum"], "unknown key 'agregator'"),
        (["dataset=spambase", "aggregator=krum", "declared_f=1"], "needs 2f + 2 < n"),
        (
            ["dataset=spambase", "aggregator=krum", "declared_f=0", "fault_rate=0.1", "attack=gaussian"],
            "simulated only",
        ),
    ],
)
def test_bad_arguments_are_heard_before_any_rank_waits(arguments, words):
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    command = [sys.executable, "-m", "krum.train", *arguments, "--timeout", "3"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr


def free_port():
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_split_model_trains_as_the_whole_one():
    rows = probes.split(0, rounds=50)
    assert [row["round"] for row in rows] == [0, 25, 50]
    assert all(row["difference"] < 0.003 and row["agreed"] == 1 for row in rows)
    assert rows[-1]["test_error"] < rows[0]["test_error"]


def test_slices_alone_do_not_agree():
    assert probes.split(0, rounds=25, slices="apart")[-1]["agreed"] < 1


def test_bytes_on_the_wire_are_those_of_the_formula():
    found = probes.taken("exchange", 0, {"ranks": 3, "dimension": 1_000_000})
    rows = {row["method"]: row for row in found}
    assert set(rows) == {"averaging", "gathered", "in-parts"}
    for row in rows.values():
        if np.isfinite(row["bytes"]):  # Linux tells
            assert row["bytes_over_formula"] == pytest.approx(1, abs=0.05)
        assert row["seconds"] > 0
    assert rows["in-parts"]["formula"] < 1.001 * rows["averaging"]["formula"] < rows["gathered"]["formula"]


def test_the_readers_own_model_trains_as_the_readme_says(tmp_path):
    """The README's ten lines, as written, in five processes."""
    text = (ROOT / "README.md").read_text()
    _, command, lines = text[: text.index("Every rank is a worker")].rpartition(
        "    # torchrun --nproc-per-node 5 yours.py\n"
    )
    assert command and len(lines.strip().splitlines()) <= 10
    yours = tmp_path / "yours.py"
    yours.write_text(textwrap.dedent(lines) + "print('trained')\ntorch.distributed.destroy_process_group()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "5", str(yours)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("trained") == 5, done.stderr


def fails_in_one(_):
    if dist.get_rank() == 1:
        raise ValueError("no neurons left")
    dist.barrier()


def test_what_a_process_says_when_it_fails_is_told():
    with pytest.raises(InputError, match="in 2 processes: ValueError: no neurons left"):
        processes.together(fails_in_one, 2, None)
