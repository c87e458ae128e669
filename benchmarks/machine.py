"""What this machine is, and the two rates that bound any aggregation or training step on it."""

import math
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(function, device):
    """The seconds that a call takes."""
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def call(function, device, least=0.02):
    """The seconds that a call takes; of a short one, the mean over as many as fill `least` seconds."""
    first = timed(function, device)
    if first >= least:
        return first
    count = math.ceil(least / first)

    def several():
        for _ in range(count):
            function()

    return timed(several, device) / count


def seconds(function, device, repeat=9):
    """The times of `repeat` calls after one that warms up."""
    function()
    return [timed(function, device) for _ in range(repeat)]


def matrix_rate(device, size=1536):
    """Multiply-adds per second of a float32 product of square matrices: the best of several."""
    a = torch.randn(size, size, device=device)
    return size**3 / min(seconds(lambda: a @ a, device))


def bandwidth(device, numbers=10**8):
    """Bytes per second of reading float32 numbers from memory, a sum over 400 MB: the best of several."""
    a = torch.ones(numbers, device=device)
    return 4 * numbers / min(seconds(a.sum, device))


def describe(device, packages=()):
    """One line: processor, threads, versions."""
    if device.type == "cuda":
        what = torch.cuda.get_device_name()
    else:
        what = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            versions.append(f"{package} not installed")
    return f"{what}; {', '.join(versions)}"


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
