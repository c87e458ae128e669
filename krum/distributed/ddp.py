"""Krum instead of the mean in `torch.nn.parallel.DistributedDataParallel`, around any model.

    model = DistributedDataParallel(model)
    aggregation = krum.ddp.aggregate_with(model, "krum", f=1)

Each rank is a worker with its own mini-batches. It sends every other rank one of N equal parts of its gradient, takes
part in the choice with its part of all gradients (`krum.sharded`), combines that, and gives the result to all: as many
bytes as in a ring all-reduce, `2 (N - 1) / N` times its gradient, and 8 N^2 for the distances.

The gradients are not trusted, whatever up to f of them hold. The code of all ranks is: each computes a part of every
aggregate. Against machines that run other code, a separate server, or several that compare results, is needed.
"""

from collections.abc import Iterable
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Variable
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from krum.distributed import parts, sharded
from krum.errors import InputError
from krum.registry import lookup
from krum.rules.aggregation import checked
from krum.rules.aggregators import AGGREGATORS


def aggregate_with(
    model: DistributedDataParallel,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    momentum: float = 0.0,
    nonfinite: Literal["propagate", "raise"] = "propagate",
    scaler: torch.amp.GradScaler | None = None,
    seed: int = 0,
    **options: Any,
) -> "Aggregation":
    """Let `model` aggregate its ranks' gradients by a rule of `krum.AGGREGATORS` from now on.

    Every rank calls it with the same arguments. The round, the coin and the last aggregate, where a rule needs them,
    are the hook's own.

    Args:
        model: the wrapped model, before its first backward pass. All its gradients together count as one vector;
            sparse ones are summed up as dense ones, and come back sparse.
        aggregator, f, options: as in `krum.aggregate`, with n the number of ranks.
        group: need not be given: the ranks are those of `model`'s own process group.
        momentum: from 0 up to 1. Every worker sends `m <- momentum m + (1 - momentum) gradient` instead of its
            gradient, from `m = gradient` in the first step on (Karimireddy et al., 2021).
        nonfinite: what a step does with more than f gradients that hold a NaN or an infinity. "propagate": every
            gradient becomes NaN on every rank, so that a GradScaler skips the step. "raise": so it does, and
            `backward` then raises InputError on every rank. The next step works in both cases.
        scaler: the one that scales the loss, if any. Its scale changes, so momentum, the last aggregate and options
            with a length, such as a radius, are kept in units of unscaled gradients.
        seed: of the coins that all ranks toss alike.

    Returns:
        What to ask whom the rule chose, and to keep in checkpoints.

    Raises:
        InputError: unknown rule or option, too few ranks for f, an argument out of its range, or a model that has a
            communication hook already.
    """
    return Aggregation(model, aggregator, f, group, momentum, nonfinite, scaler, seed, options)


class Aggregation:
    """A rule at work in a wrapped model: `aggregate_with` makes it.

    Attributes:
        round: how many steps have been aggregated; those whose aggregate was not finite do not count.
        weights: the weight of each rank's vector in the last step, float64 `[N]`, the same on all ranks; None before
            the first one, and for rules that have no weights ("median", ...).
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        aggregator: str,
        f: int | None,
        group: dist.ProcessGroup | None,
        momentum: float,
        nonfinite: str,
        scaler: torch.amp.GradScaler | None,
        seed: int,
        options: dict[str, Any],
    ):
        if not isinstance(model, DistributedDataParallel):
            found = type(model).__name__
            raise InputError(f"model: found {found}; wrap it in torch.nn.parallel.DistributedDataParallel")
        if group not in (None, model.process_group):
            raise InputError("group: found another one than the model's own; leave it out")
        if not isinstance(momentum, float | int) or not 0 <= momentum < 1:
            raise InputError(f"momentum: found {momentum!r:.60}; give a number from 0 up to 1")
        if nonfinite not in ("propagate", "raise"):
            raise InputError(f"nonfinite: found {nonfinite!r:.60}; give 'propagate' or 'raise'")
        if not isinstance(seed, int) or seed < 0:
            raise InputError(f"seed: found {seed!r:.60}; give an integer from 0 on")
        for name in ("round", "coin", "previous"):
            if name in options:
                raise InputError(f"{name}: found {options[name]!r:.60}; leave it out, the hook knows it in each step")
        self._rule = lookup(AGGREGATORS, aggregator, "aggregator")
        self._f = f
        self._options = options
        self._group: dist.ProcessGroup = model.process_group
        self._momentum = float(momentum)
        self._raises = nonfinite == "raise"
        self._scaler = scaler
        self._seed = int(seed)
        self.round = 0
        self.weights: Tensor | None = None
        self._weight_sum: Tensor | None = None
        self._last_sent: list[Tensor] | None = None  # this worker's momentum
        self._previous: list[Tensor] | None = None  # this rank's part of the last aggregate
        self._waiting: list[tuple[Future[Tensor], Tensor, list[Tensor], list[Tensor]]] = []
        checked(aggregator, dist.get_world_size(self._group), f, {**options, **self._round_and_coin()})
        # Buckets change after the first step, and again when training goes on from a checkpoint. The model's own order
        # does not, so that sums have the same bits.
        self._flats, self._places = _flat_vectors(part for part in model.module.parameters() if part.requires_grad)
        try:
            model.register_comm_hook(self, Aggregation._receive)
        except RuntimeError as error:
            raise InputError(f"model: has a communication hook already ({error}); wrap it anew") from None

    @property
    def shares(self) -> Tensor | None:
        """Each rank's mean weight over all steps so far, float64 `[N]`: whom the rule trusts. None as `weights`."""
        return None if self._weight_sum is None else self._weight_sum / self.round

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on to the same bit. Each rank has its own: its momentum is nobody else's."""
        return {
            **self._identity(),
            "round": self.round,
            "weights": self.weights,
            "weight_sum": self._weight_sum,
            "last_sent": self._last_sent,
            "previous": self._previous,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`. Raises InputError for that of another rank, rule, model or number of ranks."""
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise InputError(f"state: {', '.join(missing)} missing; give what state_dict() returned on this rank")
        for key, expected in self._identity().items():
            if state[key] != expected:
                raise InputError(f"state: found {key} {state[key]!r:.100}, here it is {expected!r:.100}; give its own")

        def here(tensors: list[Tensor] | None) -> list[Tensor] | None:
            return tensors and [tensor.to(flat) for tensor, flat in zip(tensors, self._flats, strict=True)]

        self.round, self.weights, self._weight_sum = state["round"], state["weights"], state["weight_sum"]
        self._last_sent, self._previous = here(state["last_sent"]), here(state["previous"])

    def _identity(self) -> dict[str, Any]:
        return {
            "aggregator": self._rule.name,
            "ranks": dist.get_world_size(self._group),
            "rank": dist.get_rank(self._group),
            "lengths": [len(flat) for flat in self._flats],
        }

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse a copy of the wrapped model: it would have no hook, and average. Raises InputError."""
        raise InputError(
            "a wrapped model with krum.ddp.aggregate_with is not copied or pickled; copy model.module and wrap it "
            "anew, or save model.module.state_dict() and the aggregation's state_dict()"
        )

    def _round_and_coin(self) -> dict[str, Any]:
        """What the rule needs of the next step; any rank draws the same."""
        step = self.round + 1
        known = {"round": step, "coin": float(np.random.default_rng([self._seed, step]).random())}
        return {name: value for name, value in known.items() if name in self._rule.needs}

    def _receive(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """Take one bucket's gradients; the choice is among whole ones, so all wait for the last bucket."""
        buffer, places = bucket.buffer(), [self._places[parameter] for parameter in bucket.parameters()]
        gradients = bucket.gradients() or [buffer]  # a sparse gradient is a bucket of its own
        for gradient, place in zip(gradients, places, strict=True):
            place.copy_(gradient.to_dense())
        future: Future[Tensor] = Future() if buffer.device.type == "cpu" else Future(devices=[buffer.device])
        self._waiting.append((future, buffer, gradients, places))
        if bucket.is_last():
            waiting, self._waiting = self._waiting, []
            self._aggregate()
            for received in waiting:
                _hand_back(*received)
        return future

    def _aggregate(self) -> None:
        """Turn the flat gradients, in place, into the aggregate. What is kept does not change if that is not finite."""
        scale = 1.0 if self._scaler is None else self._scaler.get_scale()
        sent = [flat.div_(scale) for flat in self._flats]
        if self._momentum:
            before = self._last_sent or sent
            sent = [last.lerp(now, 1 - self._momentum) for last, now in zip(before, sent, strict=True)]
        received = [parts.scatter(flat, parts.receive_buffer(flat, self._group), self._group) for flat in sent]
        context = self._round_and_coin() | ({"previous": self._previous} if self._rule.previous else {})
        try:
            combined, weights = sharded.aggregate(
                received, self._rule.name, self._f, group=self._group, return_weights=True, **self._options, **context
            )
        except InputError as error:  # more than f are not finite: all else was refused before the first step
            for flat in self._flats:
                flat.fill_(torch.nan)
            if self._raises:
                _raise_after_backward(InputError(f"step {self.round + 1}: {error}"))
            return
        for part, flat in zip(combined, self._flats, strict=True):
            parts.gather(part, flat, self._group)
            flat.mul_(scale)
        if self._momentum and all(bool(flat.isfinite().all()) for flat in sent):
            self._last_sent = sent
        self._previous = combined if self._rule.previous else None
        self.round += 1
        if weights is not None:
            self.weights = weights.cpu()
            self._weight_sum = self.weights if self._weight_sum is None else self._weight_sum + self.weights


def _flat_vectors(parameters: Iterable[Tensor]) -> tuple[list[Tensor], dict[Tensor, Tensor]]:
    """A vector of zeros `[d]` for the parameters of each dtype and device, and in it each one's place, a view."""
    kinds: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    flats, places = [], {}
    for alike in kinds.values():
        lengths = [parameter.numel() for parameter in alike]
        flats.append(torch.zeros(sum(lengths), dtype=alike[0].dtype, device=alike[0].device))
        for parameter, place in zip(alike, flats[-1].split(lengths), strict=True):
            places[parameter] = place.view(parameter.shape)
    return flats, places


def _hand_back(future: Future[Tensor], buffer: Tensor, gradients: list[Tensor], places: list[Tensor]) -> None:
    """Give the reducer a bucket of the aggregate."""
    if buffer.is_sparse:
        future.set_result(places[0].to_sparse(1))
        return
    for gradient, place in zip(gradients, places, strict=True):
        gradient.copy_(place)
    future.set_result(buffer)


def _raise_after_backward(error: InputError) -> None:
    """Raise it when the reducer has finished its step: one interrupted before refuses all later steps.

    The reducer finishes in a callback of autograd's that it queues after the hook. So the hook's callback queues
    another one, which comes after that.
    """
    queue = Variable._execution_engine.queue_callback

    def fail() -> NoReturn:
        raise error

    queue(lambda: queue(fail))


@torch.no_grad()
def aggregate_(
    flat: Tensor,
    aggregator: str = "krum",
    f: int | None = None,
    *,
    previous: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> Tensor:
    """Turn every rank's flat gradient `[d]`, in place, into their aggregate by any rule of `krum.AGGREGATORS`.

    Arguments and errors as in `krum.aggregate`, with n the number of ranks; `previous` is the last aggregate `[d]`.
    """
    if not isinstance(flat, Tensor):
        raise InputError(f"flat: found {type(flat).__name__}; give a contiguous floating tensor [d]")
    if flat.ndim != 1 or not flat.is_contiguous() or not flat.is_floating_point():
        raise InputError(f"flat: found {tuple(flat.shape)} of {flat.dtype}; give a contiguous floating tensor [d]")
    if not dist.is_initialized():
        raise InputError("there is no process group; call torch.distributed.init_process_group first, on every rank")
    checked(aggregator, dist.get_world_size(group), f, options)  # before anything is sent
    received = parts.scatter(flat, parts.receive_buffer(flat, group), group)
    if previous is not None:
        options["previous"] = parts.cut(previous, group)[dist.get_rank(group)]
    parts.gather(sharded.aggregate(received, aggregator, f, group=group, **options), flat, group)
    return flat
