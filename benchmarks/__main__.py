"""Measure everything and write docs/performance.md.

python -m benchmarks [--quick] [--repeat 7] [--threads 2] [--device auto] [--largest] [--only simulation ...]
"""

import argparse
import sys

import torch

from benchmarks import aggregation, curves, growth, machine, page, simulation
from krum.simulation.engine import pick_device

SECTIONS = ("aggregation", "simulation", "growth", "experiments")
PACKAGES = ("numpy", "numba", "byzfl", "torchjd", "flwr")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, three repetitions: tries the benchmarks out")
    parser.add_argument("--repeat", type=int, help="repetitions (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--largest", action="store_true", help="aggregate 20 vectors of 10^8 numbers, too (8 GB)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="measure these again, and keep the page's others")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeat = pick_device(arguments.device), arguments.repeat or (3 if arguments.quick else 7)
    processes = device.type == "cpu" and arguments.threads > 1
    measure = {
        "aggregation": lambda: aggregation.section(device, repeat, arguments.quick),
        "simulation": lambda: simulation.section(device, repeat, arguments.quick, processes),
        "growth": lambda: growth.section(device, repeat, arguments.quick, arguments.largest),
        "experiments": lambda: curves.section(device),
    }
    path = page.ROOT / "docs" / "performance.md"
    command = " ".join(["python -m benchmarks", *sys.argv[1:]])
    if arguments.only:
        text = path.read_text(encoding="utf-8")
        for name in arguments.only:
            text = replaced(text, measure[name](), command)
    else:
        text = PAGE.format(
            command=command,
            quick=QUICK if arguments.quick else "",
            machine=machine.describe(device, PACKAGES),
            sections="\n".join(measure[name]() for name in SECTIONS),
        )
    path.write_text(text, encoding="utf-8")


def replaced(text: str, section: str, command: str) -> str:
    """The page with another section of the same heading."""
    heading, _, rest = section.partition("\n")
    before, found, after = text.partition(f"\n{heading}\n")
    if not found:
        raise SystemExit(f"error: docs/performance.md: has no {heading!r}; run all of python -m benchmarks")
    _, following, later = after.partition("\n## ")
    again = f"{heading}\n\nMeasured after the other parts, with `{command}`.\n{rest}"
    return f"{before}\n{again.rstrip()}\n{following}{later}"


QUICK = "\n**A quick run, at small sizes and with few repetitions: these numbers show that the benchmarks work.**\n"
PAGE = """# Speed

This page is what `{command}` writes; `make bench` installs the other packages and runs `python -m benchmarks`.
{quick}
{machine}.

{sections}"""


if __name__ == "__main__":
    main()
