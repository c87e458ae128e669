"""Timing, and what docs/performance.md is made of: numbers, Markdown tables, a description of the machine."""

import math
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import torch

SHORTEST = 0.02  # seconds of a measurement


def seconds(function):
    """The seconds that a call takes; of a short one, the mean over as many as fill SHORTEST seconds."""
    first = _mean_seconds(function, 1)
    return first if first >= SHORTEST else _mean_seconds(function, math.ceil(SHORTEST / first))


def _mean_seconds(function, count):
    start = time.perf_counter()
    for _ in range(count):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / count


def number(value):
    """Three digits, and never an exponent."""
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def spread(values):
    """`median (least - most)` of a series."""
    return f"{number(values.median())} ({number(values.min())} - {number(values.max())})"


def table(head, rows, words=1):
    """A Markdown table, whose first `words` columns are text and the others numbers."""
    rules = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, rules, *rows])


def describe_machine(device, packages):
    """One line: processor, threads, versions."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    installed = {each.name.lower(): each.version for each in metadata.distributions()}
    versions = [f"{package} {installed.get(package, 'not installed')}" for package in packages]
    return f"{machine}; {', '.join([f'Python {platform.python_version()}', *versions])}"


def _processor():
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
