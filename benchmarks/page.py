"""What the sections of docs/performance.md are made of: numbers, Markdown tables, figures."""

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "results" / "performance"
FIGURES = ROOT / "docs" / "figures"


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
    """Write measured rows below results/."""
    MEASURED.mkdir(parents=True, exist_ok=True)
    rows.to_csv(MEASURED / f"{name}.csv", index=False)


def log_axis(axis):
    """A logarithmic axis whose labels are plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure, name):
    """Write a figure for the page; what links it there."""
    figure.savefig(FIGURES / f"{name}.png", dpi=160)
    return f"![{name}](figures/{name}.png)"
