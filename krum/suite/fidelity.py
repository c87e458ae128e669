"""docs/fidelity.md: every parameter of every experiment, its values, and who says so."""

from collections.abc import Mapping, Sequence
from typing import Any

from krum.simulation.cell import Cell
from krum.suite.experiment import Experiment, Probe, defaults_fidelity
from krum.suite.report import in_order

PARAMETERS = (
    "dataset",
    "model",
    "aggregator",
    "attack",
    "workers",
    "byzantine",
    "declared_f",
    "batch_size",
    "learning_rate",
    "worker_momentum",
    "fault_rate",
    "points",
    "rounds",
    "evaluate_every",
    "folds",
    "seeds",
)
UNUSUAL = ("worker_momentum", "fault_rate", "points")  # not worth a line where they are zero
GENERAL = (
    "activation and loss",
    "initial weights",
    "mini-batches",
    "features",
    "who is Byzantine",
    "m of Multi-Krum",
    "ties",
)


def fidelity(experiments: Mapping[str, Experiment]) -> str:
    """docs/fidelity.md: every parameter of every experiment, its values, and who says so."""
    everywhere = defaults_fidelity()
    lines = [
        "# Fidelity",
        "",
        "Every parameter of every experiment, and who says so: the **paper**, its **supplement**, or a choice of",
        "**ours**, with the reason. Written by `python -m krum fidelity` from the YAML files; a test keeps it so.",
        *("", "## Everywhere", "", "| what | who says so |", "|---|---|"),
        *(f"| {name} | {_marked(everywhere[name])} |" for name in GENERAL),
    ]
    for spec in in_order(experiments):
        lines += [
            "",
            f"## {spec.name}",
            "",
            f"{spec.title}.",
            "",
            "| parameter | values | who says so |",
            "|---|---|---|",
        ]
        for parameter in PARAMETERS:
            found = _values(spec.cells, parameter)
            if found:
                lines.append(f"| {parameter} | {found} | {mark(spec, parameter)} |")
        for name, option in _options(spec.probes):
            values = {dict(p.options).get(option) for p in spec.probes if p.name == name and option in dict(p.options)}
            shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in _sorted(values))
            lines.append(f"| {name}: {option} | {shown} | {mark(spec, name)} |")
    return "\n".join(lines) + "\n"


def mark(spec: Experiment, parameter: str) -> str:
    """Who says so, and why; "" where nobody says."""
    return _marked(spec.fidelity.get("byzantine_fraction" if parameter == "byzantine" else parameter, ""))


def _marked(text: str) -> str:
    source, colon, reason = text.partition(":")
    return f"**{source}**{colon}{reason.replace('; ours:', '; **ours**:')}" if source else ""


def _values(cells: Sequence[Cell], parameter: str) -> str:
    if parameter == "byzantine":
        found = {(cell.byzantine, cell.workers) for cell in cells}
        return ", ".join(f"{count} of {n}" for count, n in sorted(found))
    if parameter == "model":
        return ", ".join(dict.fromkeys(f"{cell.dataset}: {cell.model_label}" for cell in cells))
    if parameter in ("aggregator", "attack"):
        named = dict.fromkeys(
            getattr(cell, parameter) + _in_brackets(dict(getattr(cell, f"{parameter}_options"))) for cell in cells
        )
        return ", ".join(named)
    found_values = {getattr(cell, parameter) for cell in cells}
    if parameter in UNUSUAL and found_values == {0}:
        return ""
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in _sorted(found_values))


def _in_brackets(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{key} = {value}' for key, value in options.items())})" if options else ""


def _options(probes: Sequence[Probe]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((probe.name, option) for probe in probes for option, _ in probe.options))


def _sorted(values: set) -> list:
    return sorted(values, key=lambda value: (isinstance(value, str), value))
