"""One function in several processes of this machine that form a process group, and what the first of them returns."""

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from krum.errors import InputError

TIMEOUT = 120  # seconds that a process waits for another one


def together(function: Callable[..., Any], ranks: int, *arguments: Any) -> Any:
    """Call `function(*arguments)` in `ranks` processes of one thread each, which form the default gloo group.

    Returns what the first one returned, by way of JSON. `function` is one of a module, and is imported anew there. The
    processes are forked from one that has already imported it, and nothing else has run in: importing torch takes
    longer than most of what they do. Raises InputError with the first error of any of them; the others are ended.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

    multiprocessing.get_context("forkserver").set_forkserver_preload([function.__module__])
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(_be, (function, ranks, folder, arguments), nprocs=ranks, start_method="forkserver")
        except (ProcessRaisedException, ProcessExitedException) as error:
            said = str(error).strip().splitlines()[-1]
            raise InputError(f"{function.__module__} in {ranks} processes: {said}") from error
        return json.loads(Path(folder, "returned").read_text(encoding="utf-8"))


def _be(rank: int, function: Callable[..., Any], ranks: int, folder: str, arguments: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=timedelta(seconds=TIMEOUT)
    )
    returned = function(*arguments)
    if rank == 0:
        Path(folder, "returned").write_text(json.dumps(returned), encoding="utf-8")
    dist.destroy_process_group()
