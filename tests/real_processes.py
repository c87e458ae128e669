"""Checks in real processes that are started once for all of them."""

import traceback
from pathlib import Path

import torch.distributed as dist

from krum.distributed import processes
from krum.errors import InputError


def run(checks, folder, *arguments):
    """Call every check with this rank and the arguments; what fails leaves its traceback in the folder."""
    rank = dist.get_rank()
    for name, check in checks.items():
        try:
            check(rank, *arguments)
        except Exception:
            Path(folder, f"{name}-{rank}").write_text(traceback.format_exc())
        dist.barrier()


def failures(run_checks, ranks, folder):
    """Tracebacks by check, of `run_checks(folder)` in so many processes."""
    try:
        processes.together(run_checks, ranks, str(folder))
    except InputError:  # a rank failed, and another one waited for it in vain
        if not any(folder.iterdir()):
            raise
    return {path.name.rpartition("-")[0]: path.read_text() for path in folder.iterdir()}
