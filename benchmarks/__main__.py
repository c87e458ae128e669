"""Measure everything and write docs/performance.md.

python -m benchmarks [--quick] [--repeat 7] [--threads 2] [--device auto]
"""

import argparse
import sys

import torch

from benchmarks import aggregation, growth, measuring, tenth, training

PACKAGES = ("numpy", "byzfl", "torchjd", "flwr")
SECTIONS = (aggregation.section, training.section, growth.section, tenth.section)
QUICK = "\n**A quick run, at small sizes and with few repetitions: these numbers show that the benchmarks work.**\n"
PAGE = """# Speed

This page is what `{command}` writes; `make bench` installs the other packages and runs `python -m benchmarks`.
{quick}
{machine}.

{sections}"""


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, three repetitions: tries the benchmarks out")
    parser.add_argument("--repeat", type=int, help="repetitions (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if arguments.device == "auto" else arguments.device)
    repeat = arguments.repeat or (3 if arguments.quick else 7)
    sections = [section(device, repeat, arguments.quick) for section in SECTIONS]
    page = PAGE.format(
        command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
        quick=QUICK if arguments.quick else "",
        machine=measuring.describe(device, PACKAGES),
        sections="\n".join(sections),
    )
    (measuring.ROOT / "docs" / "performance.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
