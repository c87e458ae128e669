"""Training with real workers: each rank is one, the last ones Byzantine.

They have the mini-batches, initial weights and folds that the simulation gives the same workers of the same seed: up to
rounding, both train the same model. What is different is how. Gradients come from autograd and stay where they are
made, and the rule is computed by all ranks together (`krum.distributed.ddp`).
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from krum.distributed import ddp
from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.cell import Cell
from krum.simulation.gradients import ExplicitGradients, subtract
from krum.simulation.recording import Recorder
from krum.simulation.round import byzantine_vectors, start
from krum.simulation.run import pick_device


class Worker:
    """One rank's worker of a cell, in one seed: its data, and the parameters, which are the same on all ranks."""

    def __init__(self, cell: Cell, rank: int, seed: int = 0, device: str = "auto"):
        self.cell, self.rank = cell, rank
        self.state = start(cell, datasets.load(cell.dataset), seeds=[seed], device=pick_device(device))
        self.recorder = Recorder(self.state)

    @property
    def round(self) -> int:
        """How many rounds are done."""
        return self.state.round

    def train_one_round(self) -> None:
        """Send a gradient, honest or not, take part in the aggregation, and go one step."""
        cell, state = self.cell, self.state
        gradient = self._gradient()
        if cell.byzantine:
            gradient = self._attacked(gradient)
        options = dict(cell.aggregator_options)
        if "coin" in state.rule.needs:
            options |= {"round": state.round + 1, "coin": state.coins[0].uniform()}
        if state.rule.previous:
            options["previous"] = state.previous[0]
        aggregate = ddp.aggregate_(gradient, state.rule.name, cell.declared_f, **options)
        state.previous = aggregate[None]
        subtract(state.parameters, state.previous, cell.learning_rate)
        state.round += 1

    def record(self) -> dict[str, list]:
        """The columns that depend on the model alone, one value each."""
        return self.recorder.record()

    def _gradient(self) -> Tensor:
        """This worker's mini-batch gradient, flat, by autograd; zeros of a Byzantine worker, who sends other things."""
        state = self.state
        samples, labels = state.batches.of(state.round, slice(self.rank, self.rank + 1))
        if self.rank >= state.honest:
            return torch.zeros_like(state.previous[0])
        parameters = [
            (weight.detach().requires_grad_(), bias.detach().requires_grad_()) for weight, bias in state.parameters
        ]
        logits = state.model.forward(parameters, samples)[-1][0]
        loss = torch.nn.functional.cross_entropy(logits, labels[0])
        gradients = torch.autograd.grad(loss, [part for pair in parameters for part in pair])
        return torch.cat([part.flatten() for part in gradients])

    @torch.no_grad()
    def _attacked(self, gradient: Tensor) -> Tensor:
        """What this rank sends: its gradient, or what the attack makes of all honest ones, which the attackers see."""
        state, workers = self.state, self.cell.workers
        seen = [torch.empty_like(gradient) for _ in range(workers)]
        dist.all_gather(seen, gradient)  # no part of the protocol: an omniscient adversary's eye
        if self.rank < state.honest:
            return gradient
        honest = ExplicitGradients(torch.stack(seen[: state.honest])[None])
        sent = byzantine_vectors(state, honest, np.arange(state.honest, workers))
        return sent.vectors()[0, self.rank - state.honest].contiguous()


def train(cell: Cell, seed: int = 0, device: str = "auto") -> list[dict[str, Any]] | None:
    """Train a cell with this process group's ranks, one worker each. Rank 0 returns its curve, round by round.

    Raises InputError where the cell and the group do not fit.
    """
    if cell.workers != dist.get_world_size():
        raise InputError(
            f"workers: found {cell.workers} and {dist.get_world_size()} ranks; give as many ranks as workers"
        )
    worker, rows = Worker(cell, dist.get_rank(), seed, device), []
    for round_ in range(cell.rounds + 1):
        if round_:
            worker.train_one_round()
        if worker.rank == 0 and (round_ % cell.evaluate_every == 0 or round_ == cell.rounds):
            row = worker.record()
            rows.append({"seed": seed, "round": round_, **{k: row[k][0] for k in ("test_error", "test_loss")}})
            print(f"round {round_}: error {rows[-1]['test_error']:.4f}, loss {rows[-1]['test_loss']:.4f}", flush=True)
    return rows if worker.rank == 0 else None
