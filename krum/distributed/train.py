"""Training with real workers.

    torchrun --nproc-per-node 5 -m krum.train dataset=spambase aggregator=krum declared_f=1

Each rank is one worker, the last ones Byzantine, with the mini-batches, initial weights and folds that the simulation
(`krum.simulation`) gives the same worker of the same seed: up to float rounding, both train the same model. What is
different is how. Gradients come from autograd and stay where they are made, and the rule is computed by all ranks
together (`krum.parallel`).

Arguments are parameters as in an experiment's YAML; `workers` is the number of ranks.
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor

from krum.distributed import ddp as parallel
from krum.errors import InputError
from krum.simulation import datasets
from krum.simulation.cell import Cell, make_cell
from krum.simulation.gradients import ExplicitGradients, subtract
from krum.simulation.recording import Recorder
from krum.simulation.round import byzantine_vectors, start
from krum.simulation.run import pick_device
from krum.suite import store

TIMEOUT = 60  # seconds that a rank waits for another one


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
        aggregate = parallel.aggregate_(gradient, state.rule.name, cell.declared_f, **options)
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


def main(argv: list[str]) -> int:
    """Be one rank of `torchrun`; mistakes in the arguments are InputErrors, told once."""
    parser = argparse.ArgumentParser(prog="torchrun -m krum.train", description=__doc__.partition("\n")[0])
    parser.add_argument("parameters", nargs="*", metavar="parameter=value", help="as in an experiment's YAML")
    parser.add_argument("--seed", type=int, default=0, help="which of the cell's seeds (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--timeout", type=float, default=TIMEOUT, help=f"seconds to wait for a rank (default: {TIMEOUT})"
    )
    parser.add_argument("--output", type=Path, help="a parquet file for the curve")
    arguments = parser.parse_args(argv)
    rank = int(os.environ.get("RANK", "0"))
    try:
        if "RANK" not in os.environ:
            raise InputError("no ranks; start it as torchrun --nproc-per-node 4 -m krum.train ...")
        cell = _cell(arguments.parameters, int(os.environ["WORLD_SIZE"]))
        cuda = arguments.device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        else:
            torch.set_num_threads(1)
        waits = timedelta(seconds=arguments.timeout)
        dist.init_process_group("nccl" if cuda else "gloo", timeout=waits)
        try:
            rows = train(cell, arguments.seed, arguments.device)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:160]
            raise InputError(f"another rank died, or did not answer within {arguments.timeout:g} s ({said})") from None
        if rows is not None and arguments.output is not None:
            import pyarrow as pa

            store.write_table(pa.Table.from_pylist(rows), arguments.output, {"cell": cell.to_json()})
        dist.destroy_process_group()
    except InputError as error:
        print(f"error: rank {rank}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for threads that wait for the others
    return 0


def _cell(parameters: list[str], workers: int) -> Cell:
    chosen: dict[str, Any] = {"workers": workers}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals or name == "workers":
            raise InputError(f"{parameter!r}: give parameter=value; workers are the ranks")
        try:
            chosen[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{parameter!r}: the value is not valid YAML") from None
    cell = make_cell(chosen)
    if cell.fault_rate or cell.worker_momentum:
        raise InputError("fault_rate and worker_momentum are simulated only; leave them out")
    return cell
