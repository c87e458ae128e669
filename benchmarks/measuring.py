"""Timing, and what docs/performance.md is made of: numbers, Markdown tables, a description of the machine."""

import math
import os
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "results" / "performance"
SHORTEST = 0.02  # seconds of a measurement


def seconds(function, device="cpu"):
    """The seconds that a call takes; of a short one, the mean over as many as fill SHORTEST seconds."""
    first = _timed(function, 1, device)
    return first if first >= SHORTEST else _timed(function, math.ceil(SHORTEST / first), device)


def _timed(function, count, device):
    _wait(device)
    start = time.perf_counter()
    for _ in range(count):
        function()
    _wait(device)
    return (time.perf_counter() - start) / count


def _wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def number(value):
    """Three digits, and never an exponent."""
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def spread(values):
    """`median (least - most)`."""
    return f"{number(statistics.median(values))} ({number(min(values))} - {number(max(values))})"


def table(head, rows, words=1):
    """A Markdown table, whose first `words` columns are text and the others numbers."""
    rules = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, rules, *rows])


def keep(rows, name):
    """Write a frame of measured rows below results/."""
    MEASURED.mkdir(parents=True, exist_ok=True)
    rows.to_csv(MEASURED / f"{name}.csv", index=False)


def describe(device, packages):
    """One line: processor, threads, versions."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{machine}; {', '.join(versions)}"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
