"""Training with real workers: each rank is one, the last ones Byzantine.

They have the simulation's mini-batches, initial weights and folds of the same seed: up to rounding, both train the same
model. But gradients come from autograd and stay where they are made, and all ranks compute the rule together
(`krum.distributed.ddp`).
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from krum.distributed import ddp
from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.gradients import ExplicitGradients, subtract
from krum.simulation.parameters import Cell
from krum.simulation.recording import evaluate
from krum.simulation.round import State, byzantine_vectors, start
from krum.simulation.run import pick_device

SIMULATED_ONLY = ("fault_rate", "worker_momentum", "compare_with", "measure_gradient")


def train(cell: Cell, seed: int = 0, device: str = "auto") -> list[dict[str, Any]] | None:
    """Train a cell with this process group's ranks, one worker each. Rank 0 returns its curve, round by round.

    Raises InputError where the cell and the group do not fit.
    """
    refuse_simulated_only(cell)
    rank, ranks, rows = dist.get_rank(), dist.get_world_size(), []
    if cell.workers != ranks:
        raise InputError(f"workers: found {cell.workers} and {ranks} ranks; give as many ranks as workers")
    state = start(cell, datasets.load(cell.dataset), seeds=[seed], device=pick_device(device))
    for round_ in range(cell.rounds + 1):
        if round_:
            train_one_round(state, rank)
        if rank == 0 and (round_ % cell.evaluate_every == 0 or round_ == cell.rounds):
            (error,), (loss,) = evaluate(state.model, state.parameters, state.folds)
            rows.append({"seed": seed, "round": round_, "test_error": error, "test_loss": loss})
            print(f"round {round_}: error {error:.4f}, loss {loss:.4f}", flush=True)
    return rows if rank == 0 else None


def refuse_simulated_only(cell: Cell) -> None:
    """Raise InputError for what real workers neither do nor record."""
    if found := [name for name in SIMULATED_ONLY if getattr(cell, name)]:
        raise InputError(f"{found[0]}: found {getattr(cell, found[0])!r}, which is simulated only; leave it out")


def train_one_round(state: State, rank: int) -> None:
    """Send this rank's gradient, honest or not, take part in the aggregation, and go one step."""
    cell, rule, options = state.cell, state.rule, dict(state.cell.aggregator_options)
    if "coin" in rule.needs:
        options |= {"round": state.round + 1, "coin": state.coins[0].uniform()}
    if rule.previous:
        options["previous"] = state.previous[0]
    gradient = _gradient(state, rank)
    if cell.byzantine:
        gradient = _under_attack(state, rank, gradient)
    state.previous = ddp.aggregate_(gradient, rule.name, cell.declared_f, **options)[None]
    subtract(state.parameters, state.previous, cell.learning_rate)
    state.round += 1


def _gradient(state: State, rank: int) -> Tensor:
    """An honest worker's mini-batch gradient, flat, by autograd; zeros of a Byzantine one."""
    samples, labels = state.batches.of(state.round, slice(rank, rank + 1))
    if rank >= state.honest:
        return torch.zeros_like(state.previous[0])
    parameters = [
        (weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in state.parameters
    ]
    logits = state.model.forward(parameters, samples)[-1][0]
    loss = torch.nn.functional.cross_entropy(logits, labels[0])
    gradients = torch.autograd.grad(loss, [part for pair in parameters for part in pair])
    return torch.cat([part.flatten() for part in gradients])


@torch.no_grad()
def _under_attack(state: State, rank: int, gradient: Tensor) -> Tensor:
    """What a rank sends: its gradient, or what the attack makes of all honest ones, which the attackers see."""
    workers = state.cell.workers
    seen = [torch.empty_like(gradient) for _ in range(workers)]
    dist.all_gather(seen, gradient)  # no part of the protocol: an omniscient adversary's eye
    if rank < state.honest:
        return gradient
    honest = ExplicitGradients(torch.stack(seen[: state.honest])[None])
    sent = byzantine_vectors(state, honest, np.arange(state.honest, workers))
    return sent.vectors()[0, rank - state.honest].contiguous()
