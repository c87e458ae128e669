"""One function in several processes of this machine that form a process group."""

import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

from krum.errors import InputError

TIMEOUT = 60  # seconds that a process waits for another one


def together(function: Callable[..., Any], ranks: int, *arguments: Any) -> Any:
    """Call `function(*arguments)` in `ranks` processes of one thread each, which form the default gloo group.

    Returns what the first one returned, by way of JSON. `function` is at the top level of a module, which a fork server
    imports once for all processes. Raises InputError with the first error of any of them; the others are ended.
    """
    get_context("forkserver").set_forkserver_preload([function.__module__])
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(_rank, (function, ranks, folder, arguments), nprocs=ranks, start_method="forkserver")
        except (ProcessRaisedException, ProcessExitedException) as error:
            last_line = str(error).strip().splitlines()[-1]
            raise InputError(f"{function.__module__} in {ranks} processes: {last_line}") from error
        return json.loads(Path(folder, "returned").read_text(encoding="utf-8"))


def _rank(rank: int, function: Callable[..., Any], ranks: int, folder: str, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timeout
    )
    returned = function(*arguments)
    if rank == 0:
        Path(folder, "returned").write_text(json.dumps(returned), encoding="utf-8")
    dist.destroy_process_group()
