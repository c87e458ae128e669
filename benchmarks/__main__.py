"""Measure everything and write docs/performance.md.

python -m benchmarks [--quick] [--repeat 7] [--threads 2] [--device cpu]
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import aggregation, growth, measuring, tenth, training

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "results" / "performance"
PACKAGES = ("torch", "numpy", "byzfl", "torchjd", "flwr")
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
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, repeat = torch.device(arguments.device), arguments.repeat or (3 if arguments.quick else 7)
    ROWS.mkdir(parents=True, exist_ok=True)
    sections = []
    for name, module in {"aggregation": aggregation, "training": training, "growth": growth, "tenth": tenth}.items():
        rows = module.measure(device, repeat, arguments.quick)
        rows.to_csv(ROWS / f"{name}.csv", index=False)
        sections.append(module.section(rows, repeat))
    page = PAGE.format(
        command=" ".join(["python -m benchmarks", *sys.argv[1:]]),
        quick=QUICK if arguments.quick else "",
        machine=measuring.describe_machine(device, PACKAGES),
        sections="\n".join(sections),
    )
    (ROOT / "docs" / "performance.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
