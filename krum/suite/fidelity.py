"""docs/fidelity.md: every parameter of every experiment, its values, and who says so."""

from collections.abc import Mapping, Sequence

from krum.simulation.parameters import FIELDS, NAMED, OPTIONS, PARAMETERS, Cell
from krum.suite.experiment import Experiment
from krum.suite.reading import EXPERIMENTS, read_checked
from krum.suite.report import in_order


def fidelity(experiments: Mapping[str, Experiment]) -> str:
    """The page's text."""
    general = read_checked(EXPERIMENTS / "fidelity.yaml", "fidelity")
    lines = [
        "# Fidelity",
        "",
        "Every parameter of every experiment, and who says so: the **paper**, its **supplement**, or a choice of",
        "**ours**, with the reason. Written by `python -m krum fidelity` from the YAML files; a test keeps it so.",
        *("", "## Everywhere", "", "| what | who says so |", "|---|---|"),
        *(f"| {name} | {_marked(text)} |" for name, text in general.items() if name not in PARAMETERS),
    ]
    for spec in in_order(experiments):
        lines += ["", f"## {spec.name}", "", f"{spec.title}.", ""]
        lines += ["| parameter | values | who says so |", "|---|---|---|"]
        for parameter in FIELDS:
            if spec.cells and (shown := _values(spec.cells, parameter)):
                lines.append(f"| {parameter} | {shown} | {mark(spec, parameter)} |")
        for name, option in dict.fromkeys((probe.name, option) for probe in spec.probes for option, _ in probe.options):
            values = {value for p in spec.probes if p.name == name for key, value in p.options if key == option}
            lines.append(f"| {name}: {option} | {_listed(values)} | {mark(spec, name)} |")
    return "\n".join(lines) + "\n"


def mark(spec: Experiment, parameter: str) -> str:
    """Who says so, and why; "" where nobody says."""
    return _marked(spec.fidelity.get("byzantine_fraction" if parameter == "byzantine" else parameter, ""))


def _marked(text: str) -> str:
    source, colon, reason = text.partition(":")
    return f"**{source}**{colon}{reason.replace('; ours:', '; **ours**:')}" if source else ""


def _values(cells: Sequence[Cell], parameter: str) -> str:
    """A parameter's values in some cells; "" where another line says it, or where it is off in all of them."""
    if parameter == "byzantine_fraction" or parameter in OPTIONS:
        return ""
    if parameter == "byzantine":
        counts = {(cell.byzantine, cell.workers) for cell in cells}
        return ", ".join(f"{count} of {n}" for count, n in sorted(counts))
    if parameter == "model":
        return ", ".join(dict.fromkeys(f"{cell.dataset}: {cell.model_label}" for cell in cells))
    if parameter in NAMED:
        names = []
        for cell in cells:
            options = ", ".join(f"{key} = {value}" for key, value in getattr(cell, f"{parameter}_options"))
            names.append(getattr(cell, parameter) + (f" ({options})" if options else ""))
        return ", ".join(dict.fromkeys(names))
    values, default = {getattr(cell, parameter) for cell in cells}, FIELDS[parameter].default
    return "" if values == {default} and not default else _listed(values)


def _listed(values: set) -> str:
    """Values in order, those that are numbers first."""
    shown = sorted(values, key=lambda value: (isinstance(value, str), str(value) if value is None else value))
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in shown)
