"""Measure everything and write docs/performance.md.

python -m benchmarks [--quick] [--repeat 7] [--threads 2] [--device auto] [--largest]
"""

import argparse
import sys

import torch

from benchmarks import aggregation, curves, growth, machine, page, simulation
from krum.simulation import pick_device

PACKAGES = ("numpy", "numba", "byzfl", "torchjd", "flwr")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, three repetitions: tries the benchmarks out")
    parser.add_argument("--repeat", type=int, help="repetitions (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--largest", action="store_true", help="aggregate 20 vectors of 10^8 numbers, too (8 GB)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeat = pick_device(arguments.device), arguments.repeat or (3 if arguments.quick else 7)
    processes = device.type == "cpu" and arguments.threads > 1
    sections = [
        aggregation.section(device, repeat, arguments.quick),
        simulation.section(device, repeat, arguments.quick, processes),
        growth.section(device, repeat, arguments.quick, arguments.largest),
        curves.section(device),
    ]
    (page.ROOT / "docs" / "performance.md").write_text(
        PAGE.format(
            command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
            quick=QUICK if arguments.quick else "",
            machine=machine.describe(device, PACKAGES),
            sections="\n".join(sections),
        ),
        encoding="utf-8",
    )


QUICK = "\n**A quick run, at small sizes and with few repetitions: these numbers show that the benchmarks work.**\n"
PAGE = """# Speed

This page is what `{command}` writes; `make bench` installs the other packages and runs `python -m benchmarks`.
{quick}
{machine}.

{sections}"""


if __name__ == "__main__":
    main()
