"""Krum where models are trained: in DistributedDataParallel, on models as they are, and in FSDP2."""

import copy
import importlib.util
import io
import re
from pathlib import Path

import numpy as np
import pytest
import real_processes
import torch
import torch._dynamo  # with what DDP and FSDP import in each process: their fork server does it once for all
import torch.distributed as dist
import torch.distributed.fsdp
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import krum
import krum.ddp
import krum.sharded
from krum.distributed import processes, sharded
from krum.rules import aggregation

DOCS = Path(__file__).resolve().parent.parent / "docs"
RANKS = 6

# ------------------------------------------------------------------- what is checked inside of six processes, by all

CHECKS = {}


def in_six_processes(check):
    """Register a check `(rank, trio)`: `trio` is a process group of this rank and two others, 0 to 2 or 3 to 5."""
    CHECKS[check.__name__] = check
    return check


def wrapped(group, *arguments, net=None, **options):
    """A small model in many buckets, the same on each rank, and its aggregation."""
    torch.manual_seed(0)
    if net is None:
        net = torch.nn.Sequential(torch.nn.Linear(50, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    model = DistributedDataParallel(net, process_group=group, bucket_cap_mb=0.02)
    return model, krum.ddp.aggregate_with(model, *arguments, **options)


def batch(step, rank):
    torch.manual_seed(1000 * step + rank)
    return torch.randn(8, 50), torch.randint(10, (8,))


def gradients(model):
    return torch.cat([part.grad.flatten() for part in model.parameters()])


def own_gradient(model, step, rank):
    """What this rank alone computes."""
    x, y = batch(step, rank)
    parts = torch.autograd.grad(cross_entropy(model.module(x), y), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def everyones(tensor, group):
    """The ranks' tensors, stacked."""
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, tensor, group=group)
    return torch.stack(gathered)


def train(model, steps, rank, spoil=None):
    """Ordinary steps; `spoil(step, loss)` is what a rank does to its loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in steps:
        optimizer.zero_grad()
        loss = cross_entropy(*(f(a) for f, a in zip((model, lambda y: y), batch(step, rank), strict=True)))
        (loss if spoil is None else spoil(step, loss)).backward()
        optimizer.step()
    return torch.cat([part.detach().flatten() for part in model.parameters()])


@in_six_processes
def two_jobs_do_not_mix(rank, trio):
    """Each job's models see its own ranks' gradients, wherever DDP has its group from."""
    job = rank // 3
    model = DistributedDataParallel(torch.nn.Linear(1, 1, bias=False), process_group=trio)
    krum.ddp.aggregate_with(model, "average")
    model(torch.tensor([[float(rank % 3 + 1) * 100**job]])).sum().backward()
    assert model.module.weight.grad.item() == pytest.approx([2, 200][job])
    model = DistributedDataParallel(torch.nn.Linear(1, 1), process_group=trio)
    with pytest.raises(krum.InputError, match="group: found another one than the model's"):
        krum.ddp.aggregate_with(model, "average", group=dist.group.WORLD)
    krum.ddp.aggregate_with(model, "average", group=trio)


@in_six_processes
def an_overflow_is_what_a_scaler_skips(rank, trio):
    """fp16: the scale halves until nothing overflows, as in plain DDP; then all steps are taken."""
    scales = []
    for rule in (None, "krum"):
        torch.manual_seed(0)
        model = DistributedDataParallel(torch.nn.Linear(50, 10), process_group=trio)
        if rule:
            aggregation = krum.ddp.aggregate_with(model, rule, f=0)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2**22)
        before = model.module.weight.detach().clone()
        for step in range(12):
            optimizer.zero_grad()
            x, y = batch(step, rank)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if step == 0:
                assert torch.equal(before, model.module.weight) and scaler.get_scale() == 2**21
        assert not torch.equal(before, model.module.weight) and model.module.weight.isfinite().all()
        scales.append(scaler.get_scale())
    assert scales[0] == scales[1] < 2**21
    assert aggregation.round == 12 - np.log2(2**22 / scales[1])


@in_six_processes
def momentum_is_in_units_of_unscaled_gradients(rank, trio):
    """Where the scale changes between steps, momentum and a clipping radius do not."""
    results = []
    for scaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1) if scaled else None
        options = {"f": 1, "radius": 0.5, "momentum": 0.9, "scaler": scaler}
        model, _ = wrapped(trio, "centred-clipping", **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(4):
            optimizer.zero_grad()
            x, y = batch(step, rank)
            loss = cross_entropy(model(x), y)
            (scaler.scale(loss) if scaled else loss).backward()
            scaler.step(optimizer) if scaled else optimizer.step()
            if scaled:
                scaler.update()
        results.append(torch.cat([part.detach().flatten() for part in model.parameters()]))
    assert torch.allclose(*results, rtol=1e-4, atol=1e-7)


@in_six_processes
def after_too_many_infinities_the_next_step_works(rank, trio):
    for nonfinite in ("propagate", "raise"):
        for rule in ("krum", "median", "average"):
            model, aggregation = wrapped(trio, rule, 0, nonfinite=nonfinite, momentum=0.5)
            for step in range(6):
                model.zero_grad()
                x, y = batch(step, rank)
                bad = step in (0, 3, 4)
                loss = cross_entropy(model(x), y) * (torch.inf if bad and rank % 3 == 1 else 1)
                if bad and nonfinite == "raise":
                    with pytest.raises(krum.InputError, match=r"^step \d: 1 vectors hold NaN or infinity"):
                        loss.backward()
                else:
                    loss.backward()
                assert bool(gradients(model).isfinite().all()) != bad
                assert not bad or bool(gradients(model).isnan().all())
            assert aggregation.round == 3


@in_six_processes
def a_worker_recovers_from_its_own_infinity(rank, trio):
    """Of f or fewer, the step goes on without them; their momentum is the last finite one."""
    model, aggregation = wrapped(trio, "median", 1, momentum=0.9)
    train(model, range(3), rank, lambda step, loss: loss * (torch.inf if step == 1 and rank % 3 == 0 else 1))
    assert aggregation.round == 3
    assert all(bool(part.isfinite().all()) for part in aggregation.state_dict()["last_sent"])


@in_six_processes
def workers_send_their_momentum(rank, trio):
    model, aggregation = wrapped(trio, "krum", 0, momentum=0.75)
    sent = None
    for step in range(4):
        own = own_gradient(model, step, rank)
        sent = own if sent is None else 0.75 * sent + 0.25 * own
        expected, weights = krum.aggregate(everyones(sent, trio), "krum", f=0, return_weights=True)
        train(model, [step], rank)
        assert torch.allclose(gradients(model), expected, atol=1e-6)
        assert torch.equal(aggregation.weights, weights)


@in_six_processes
def the_hook_counts_rounds_and_draws_coins(rank, trio):
    """1-p Krum averages with probability round / horizon, on all ranks alike, and differently under another seed."""
    averaged = {}
    for seed in (0, 1):
        model, aggregation = wrapped(trio, "1-p-krum", 0, horizon=20, seed=seed)
        averaged[seed] = []
        for step in range(20):
            train(model, [step], rank)
            averaged[seed].append(bool(aggregation.weights.max() < 0.5))
            everywhere = everyones(gradients(model), trio)
            assert bool((everywhere == everywhere[0]).all())
        assert aggregation.round == 20 and averaged[seed][-1]
        assert 4 <= sum(averaged[seed]) <= 16 and sum(averaged[seed][:5]) <= 3
    assert averaged[0] != averaged[1]
    for name, value in (("round", 1), ("coin", 0.5), ("previous", torch.zeros(3))):
        with pytest.raises(krum.InputError, match=f"^{name}: found .* leave it out, the hook knows it in each step$"):
            wrapped(trio, "1-p-krum", 0, **{name: value})


@in_six_processes
def the_hook_keeps_the_last_aggregate(rank, trio):
    model, _ = wrapped(trio, "centred-clipping", 1, radius=0.5)
    last = None
    for step in range(4):
        everyone = everyones(own_gradient(model, step, rank), trio)
        last = krum.aggregate(everyone, "centred-clipping", f=1, radius=0.5, previous=last)
        train(model, [step], rank)
        assert torch.allclose(gradients(model), last, atol=1e-6)


@in_six_processes
def going_on_from_a_checkpoint_gives_the_same_bits(rank, trio):
    """Whichever buckets the gradients travel in: they change after a process's first step."""
    cases = (
        ("centred-clipping", {"radius": 0.5}),
        ("1-p-krum", {"horizon": 8}),
        ("geometric-median", {}),
        ("median", {}),
    )
    for rule, options in cases:
        f = 0 if rule == "1-p-krum" else 1
        model, whole = wrapped(trio, rule, f, momentum=0.9, **options)
        expected = train(model, range(8), rank)
        model, first = wrapped(trio, rule, f, momentum=0.9, **options)
        train(model, range(4), rank)
        file = io.BytesIO()
        torch.save({"model": model.module.state_dict(), "aggregation": first.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file)  # with weights_only, as by default
        model, second = wrapped(trio, rule, f, momentum=0.9, **options)
        model.module.load_state_dict(saved["model"])
        second.load_state_dict(saved["aggregation"])
        assert torch.equal(train(model, range(4, 8), rank), expected), rule
        assert second.round == 8
        assert whole.shares is None or torch.equal(second.shares, whole.shares)
    state = second.state_dict()
    for changes, words in (
        ({"rank": (rank + 1) % 3}, "found rank"),
        ({"ranks": 4}, "found ranks 4, here it is 3"),
        ({"aggregator": "krum"}, "found aggregator 'krum'"),
        ({"lengths": [7]}, r"found lengths \[7\]"),
    ):
        with pytest.raises(krum.InputError, match=words):
            second.load_state_dict({**state, **changes})
    with pytest.raises(krum.InputError, match="state: round missing"):
        second.load_state_dict({name: value for name, value in state.items() if name != "round"})


@in_six_processes
def copies_are_refused_and_a_second_wrapping_is_its_own(rank, trio):
    model, aggregation = wrapped(dist.group.WORLD, "krum", 1)
    for copier in (copy.deepcopy, lambda wrapper: torch.save(wrapper, io.BytesIO())):
        for thing in (model, aggregation):
            with pytest.raises(krum.InputError, match="is not copied or pickled; copy"):
                copier(thing)
    with pytest.raises(krum.InputError, match="has a communication hook already"):
        krum.ddp.aggregate_with(model, "krum", 1)
    train(model, range(2), rank)
    again, second = wrapped(dist.group.WORLD, "krum", 1, net=model.module)
    expected = krum.aggregate(everyones(own_gradient(again, 5, rank), None), "krum", f=1)
    train(again, [5], rank)
    assert torch.allclose(gradients(again), expected, atol=1e-6)
    assert (aggregation.round, second.round) == (2, 1)


@in_six_processes
def the_running_share_names_the_culprit(rank, trio):
    for rule in ("krum", "multi-krum"):
        model, aggregation = wrapped(dist.group.WORLD, rule, 1)
        assert aggregation.weights is None and aggregation.shares is None
        train(model, range(6), rank, lambda step, loss: loss * (-50 if rank == 4 else 1))
        assert aggregation.shares.shape == (RANKS,) and aggregation.shares.sum().item() == pytest.approx(1)
        assert aggregation.shares[4] == 0 == aggregation.weights[
            4
        ] and aggregation.weights.sum().item() == pytest.approx(1)
    model, aggregation = wrapped(trio, "median", 1)
    train(model, range(2), rank)
    assert aggregation.weights is None and aggregation.shares is None


@in_six_processes
def sparse_gradients_are_aggregated_and_stay_sparse(rank, trio):
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Embedding(20, 3, sparse=sparse), torch.nn.Linear(3, 1))
        model, _ = wrapped(trio, "krum", 0, net=net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            model(torch.tensor([0, 1, 1, rank % 3 + 2 + step])).sum().backward()
            assert net[0].weight.grad.is_sparse == sparse
            optimizer.step()
        results.append(torch.cat([part.detach().flatten() for part in net.parameters()]))
    assert torch.equal(*results)
    assert net[0].weight.grad.coalesce().indices().shape[1] <= 3  # rows without a gradient are not sent on


@in_six_processes
def ties_stay_ties_however_a_ring_adds_up(rank, trio):
    """Of three numbers or more the order of addition matters, and a ring's differs from element to element."""
    whole = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 600)))
    whole[5], whole[6, 3] = whole[2], torch.nan
    for group in (trio, dist.group.WORLD):
        slices = whole.tensor_split(dist.get_world_size(group), 1)[dist.get_rank(group)]
        squared = aggregation._squared_distances(sharded._read(slices, group))
        assert torch.equal(squared, squared.T) and torch.equal(squared[2], squared[5])
        assert bool(squared[6].isinf().all()) and torch.allclose(
            squared[:6, :6], torch.cdist(whole, whole)[:6, :6] ** 2
        )


@in_six_processes
def mixed_dtypes_and_unused_parameters_are_one_vector(rank, trio):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle = torch.nn.Linear(3, 3).double(), torch.nn.Linear(3, 1), torch.nn.Linear(2, 2)

        def forward(self, x):
            return self.b(self.a(x.double()).float())

    torch.manual_seed(0)
    net = Net()
    model = DistributedDataParallel(net, process_group=trio, find_unused_parameters=True)
    aggregation = krum.ddp.aggregate_with(model, "krum", 0)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        x = torch.randn(4, 3)
        own = torch.autograd.grad(net(x).square().sum(), [*net.a.parameters(), *net.b.parameters()])
        own = torch.cat([part.double().flatten() for part in own])
        model.zero_grad()
        model(x).square().sum().backward()
        expected, weights = krum.aggregate(everyones(own, trio), "krum", f=0, return_weights=True)
        result = [part.grad.double().flatten() for part in (*net.a.parameters(), *net.b.parameters())]
        assert torch.equal(aggregation.weights, weights), (step, aggregation.weights, weights)
        assert torch.equal(torch.cat(result), expected), torch.cat(result) - expected
        assert net.idle.weight.grad is None


@in_six_processes
def arguments_out_of_range_are_refused(rank, trio):
    for options, words in (
        ({"momentum": 1.0}, "momentum: found 1.0; give a number from 0 up to 1"),
        ({"momentum": "0.9"}, "momentum: found '0.9'"),
        ({"nonfinite": "skip"}, "nonfinite: found 'skip'; give 'propagate' or 'raise'"),
        ({"seed": -1}, "seed: found -1"),
        ({"radius": 1.0}, "unknown option 'radius'"),
        ({"f": 1}, "needs 2f"),
    ):
        with pytest.raises(krum.InputError, match=words):
            wrapped(trio, "krum", **{"f": 0, **options})


@in_six_processes
def a_model_that_fsdp_splits_trains_as_printed(rank, trio):
    """And as in one place: a worker's gradient is the mean of its two ranks'."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "training.md").read_text(encoding="utf-8"), re.M | re.S)
    printed = {}
    exec(block, printed)
    batches = []
    for each in range(RANKS):
        torch.manual_seed(each)
        batches.append([torch.randn(3, 10) for _ in range(3)])
    torch.manual_seed(0)
    model = torch.nn.Linear(10, 2)
    for step in range(3):
        workers = []
        for worker in range(3):
            x, y = torch.cat([batches[2 * worker][step], batches[2 * worker + 1][step]]), torch.tensor([0, 1, 0] * 2)
            workers.append(torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters())))
        for parameter, part in zip(model.parameters(), krum.aggregate(workers, "geometric-median", f=1), strict=True):
            parameter.data -= 0.1 * part
    for parameter, expected in zip(printed["model"].parameters(), model.parameters(), strict=True):
        assert torch.allclose(parameter.full_tensor(), expected, atol=1e-6)


def run_checks(folder):
    trio = [dist.new_group([0, 1, 2]), dist.new_group([3, 4, 5])][dist.get_rank() // 3]
    real_processes.run(CHECKS, folder, trio)


def test_in_six_processes(tmp_path):
    failures = real_processes.failures(run_checks, RANKS, tmp_path)
    assert not failures, "\n".join(failures.values())


def short_runs():
    """The script that the documentation prints, for a tenth of its rounds."""
    spec = importlib.util.spec_from_file_location("train_mnist", DOCS / "train_mnist.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    cases = {"whole": ("multi-krum", 40, True, False), "resumed": ("multi-krum", 40), "plain": ("plain", 40)}
    return {name: script.train(*arguments) for name, arguments in cases.items()}


def test_a_run_in_half_precision_with_a_checkpoint_names_the_culprit():
    runs = processes.together(short_runs, 5)
    assert runs["resumed"] == runs["whole"]
    assert runs["whole"]["shares"] == pytest.approx([0.25] * 4 + [0], abs=0.03)
    assert runs["whole"]["errors"]["40"] < 0.4 < 0.7 < runs["plain"]["errors"]["40"]


# ------------------------------------------------------------------------------------------------- in one process


def test_weights_are_returned_on_demand():
    rows = np.random.default_rng(0).normal(size=(7, 5))
    rows[2] = np.nan
    aggregate, weights = krum.aggregate(rows, "multi-krum", f=2, m=3, return_weights=True)
    assert weights.shape == (7,) and weights.dtype == np.float64 and weights[2] == 0
    assert sorted(weights)[-3:] == [1 / 3] * 3 and weights.sum() == pytest.approx(1)
    assert np.allclose(aggregate, weights[weights > 0] @ rows[weights > 0])
    _, weights = krum.aggregate(torch.from_numpy(rows), "krum", f=2, return_weights=True)
    assert isinstance(weights, torch.Tensor) and weights.sum() == 1
    _, weights = krum.aggregate(list(rows), "centred-clipping", f=2, previous=rows[0], return_weights=True)
    assert weights.shape == (7,) and weights[2] == 0
    aggregate, weights = krum.aggregate(rows, "median", f=2, return_weights=True)
    assert weights is None and aggregate.shape == (5,)
    weights = krum.sharded.aggregate(torch.from_numpy(rows), "krum", 2, return_weights=True)[1]
    assert weights.shape == (7,) and weights.sum() == 1


def batch_norm_models(n=5):
    """State dicts as they are: of the last one, the numbers are far from the others', and the counter is absurd."""
    models = []
    for i in range(n):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
        model[0].weight.data.fill_(0.01 * i)
        model[0].bias.data.fill_(0)
        model[1].num_batches_tracked.fill_(10 * (i + 1))
        model.register_buffer("frozen", torch.tensor(i < 3))
        models.append(model.state_dict())
    models[-1]["0.weight"] += 100
    models[-1]["1.num_batches_tracked"].fill_(-(10**12))
    return models


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_models_with_batch_norm_are_aggregated_as_they_are(kind):
    models = batch_norm_models()
    if kind == "numpy":
        models = [{name: leaf.numpy() for name, leaf in model.items()} for model in models]
    result, weights = krum.aggregate(models, "krum", f=1, return_weights=True)
    chosen = models[int(weights.argmax())]
    assert all(type(result[name]) is type(chosen[name]) and (result[name] == chosen[name]).all() for name in chosen)
    assert all(result[name].dtype == chosen[name].dtype for name in chosen)
    result["1.num_batches_tracked"] += 1  # memory of its own
    assert chosen["1.num_batches_tracked"] % 10 == 0
    assert krum.aggregate(models[:4], "average", f=0)["1.num_batches_tracked"] == 10  # the first of equal weights
    median = krum.aggregate(models, "median", f=1)
    assert median["1.num_batches_tracked"] == 20 and median["frozen"]
    again = krum.aggregate(models, "centred-clipping", f=1, previous=result)
    assert again["1.num_batches_tracked"] == 10
    if kind == "torch":
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).load_state_dict(result, strict=False)


def test_a_model_may_have_an_empty_layer():
    models = [{"empty": torch.zeros(0, 3), "full": torch.full((2,), float(i))} for i in range(7)]
    for rule in ("krum", "average", "geometric-median", "median", "bulyan"):
        result = krum.aggregate(models, rule, f=1 if rule != "average" else 0)
        assert result["empty"].shape == (0, 3) and result["full"].shape == (2,), rule


def test_models_of_integers_alone_are_refused():
    with pytest.raises(krum.InputError, match="no floating-point numbers"):
        krum.aggregate([{"steps": torch.tensor([1])}] * 3, "average")
