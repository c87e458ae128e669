"""Training with real workers, one process each:

    torchrun --nproc-per-node 5 -m krum.train dataset=spambase aggregator=krum declared_f=1

Arguments are parameters as in an experiment's YAML; `workers` is the number of ranks.
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import torch
import torch.distributed as dist

from krum.distributed.train import refuse_simulated_only, train
from krum.errors import InputError, located
from krum.simulation.parameters import Cell, make_cell
from krum.simulation.run import pick_device
from krum.suite import reading, store

__all__ = ["main", "train"]

MOST_SECONDS = 10**6


def main(argv: list[str]) -> int:
    """Be one rank of `torchrun`; mistakes in the arguments are InputErrors, told once."""
    parser = _Parser(prog="torchrun -m krum.train", description="Train a cell with real workers.")
    parser.add_argument("parameters", nargs="*", metavar="parameter=value", help="as in an experiment's YAML")
    parser.add_argument("--seed", type=int, default=0, help="which of the cell's seeds (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for another rank (default: 60)")
    parser.add_argument("--output", type=Path, help="a parquet file for the curve")
    rank = int(os.environ.get("RANK", "0"))
    try:
        arguments = parser.parse_args(argv)
        if arguments.seed < 0 or not 0 < arguments.timeout < MOST_SECONDS:
            raise InputError(f"give a seed of at least 0, and a timeout above 0 and below {MOST_SECONDS:,} s")
        pick_device(arguments.device)
        if "RANK" not in os.environ:
            raise InputError("no ranks; start it as torchrun --nproc-per-node 4 -m krum.train ...")
        cell = _cell(arguments.parameters, int(os.environ["WORLD_SIZE"]))
        cuda = arguments.device != "cpu" and torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        else:
            torch.set_num_threads(1)
        try:
            dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=arguments.timeout))
            rows = train(cell, arguments.seed, arguments.device)
        except RuntimeError as error:
            said = " ".join(str(error).split())[:160]
            raise InputError(f"another rank died, or did not answer within {arguments.timeout:g} s ({said})") from None
        if rows is not None and arguments.output is not None:
            store.write_table(pa.Table.from_pylist(rows), arguments.output, {"cell": cell.to_json()})
        dist.destroy_process_group()
    except InputError as error:
        print(f"error: rank {rank}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # without waiting for threads that wait for the others
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise InputError for a wrong command line, where argparse would print and exit."""
        raise InputError(message)


def _cell(parameters: list[str], workers: int) -> Cell:
    chosen: dict[str, Any] = {"workers": workers}
    for parameter in parameters:
        name, equals, value = parameter.partition("=")
        if not equals or name == "workers":
            raise InputError(f"{parameter!r}: give parameter=value; workers are the ranks")
        if name in chosen:
            raise InputError(f"{parameter!r}: {name} is given twice")
        with located(repr(parameter)):
            chosen[name] = reading.parse(value)
    cell = make_cell(chosen)
    refuse_simulated_only(cell)
    return cell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
