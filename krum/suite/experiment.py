"""Experiments: YAML files under experiments/, unfolded into cells and probes, and checked before anything runs.

An experiment's grid is a list of blocks. In a block every parameter takes a value or a list of values, and stands for
the product of its lists. What a block leaves out comes from the experiment's own `parameters`, then from the defaults
of `krum.simulation.cell.Cell`. A cell is one curve: one combination, with all its seeds.
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from krum.errors import InputError, unknown
from krum.registry import LARGEST, check_options, lookup
from krum.simulation.cell import FIELDS, Cell, byzantine_count, checked, complete, frozen, make_cell
from krum.suite import figures, probes
from krum.suite.probes import Probe

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NOT_EXPERIMENTS = ("claims", "fidelity", "schema")
# The workflow's rules: an experiment is a target like them.
RESERVED = (
    *("all", "claims", "curve", "data", "figure", "probe", "report", "results", "review", "review_claims"),
    *("review_scorecard", "scorecard"),
)
MOST_CELLS = 100_000  # of a block


@dataclass(frozen=True)
class Experiment:
    """A validated experiment: its cells and probes in the order of the YAML, and how to draw them."""

    name: str
    title: str
    claim: str
    figure: Mapping[str, Any]
    cells: tuple[Cell, ...]
    probes: tuple[Probe, ...]
    part: str  # paper, supplement, beyond or review: whose figure it is
    fidelity: Mapping[str, str]  # parameter -> who says so (paper, supplement, ours) and why
    source: str  # the YAML's text
    overrides: Mapping[str, Any]

    @property
    def slugs(self) -> set[str]:
        """The names of its cells and probes."""
        return {cell.slug for cell in self.cells} | {probe.slug for probe in self.probes}


def load_all(folder: Path = EXPERIMENTS, overrides: Mapping[str, Any] | None = None) -> dict[str, Experiment]:
    """Every experiment in the folder, by name. Raises InputError for the first that cannot be run as it stands."""
    paths = sorted(path for path in Path(folder).glob("*.yaml") if path.stem not in NOT_EXPERIMENTS)
    return {path.stem: load(path, overrides) for path in paths}


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """One experiment. `overrides` are parameters that win over everything in the file, for a small run.

    Raises InputError for the first mistake in the file, in fidelity.yaml or in the overrides.
    """
    path = Path(path)
    if path.stem in RESERVED or not re.fullmatch(r"[a-z][a-z0-9_-]*", path.stem):
        raise InputError(
            f"{path}: the file's name names the experiment; give small letters, digits, - and _, "
            f"and none of {', '.join(RESERVED)}"
        )
    document, source = _read(path)
    _check_structure(document, "experiment", path)
    shared = document.get("parameters", {})
    overrides = {} if overrides is None else overrides
    _complete(f"{path}: parameters", shared)
    _complete("overrides", overrides)
    cells = _cells(path, document, shared, overrides)
    seeds = {"seeds": FIELDS["seeds"].default, **shared, **overrides}["seeds"]
    measured = [
        _probe(where, {"seeds": seeds, **options, **({"seeds": seeds} if "seeds" in overrides else {})})
        for where, options in _combinations(path, document, "probes")
    ]
    if not cells and not measured:
        raise InputError(f"{path}: nothing to run; give a grid of training runs, or probes")
    figures.check(f"{path}: figure", document["figure"], cells, {probe.name for probe in measured})
    return Experiment(
        name=path.stem,
        title=document["title"],
        claim=document["claim"],
        figure=document["figure"],
        cells=tuple(dict.fromkeys(cells)),
        probes=tuple(dict.fromkeys(measured)),
        part=document.get("part", "beyond"),
        fidelity={**general_fidelity(path.parent), **document.get("fidelity", {})},
        source=source,
        overrides=overrides,
    )


def thinned(spec: Experiment, most: int) -> Experiment:
    """An experiment of the review with at most so many of its cells, evenly spread; any other as it is."""
    if spec.part != "review" or len(spec.cells) <= most:
        return spec
    return replace(spec, cells=tuple(spec.cells[number * len(spec.cells) // most] for number in range(most)))


def general_fidelity(folder: Path = EXPERIMENTS) -> dict[str, str]:
    """Who says so, for what experiments do not say themselves."""
    return read_checked(folder / "fidelity.yaml", "fidelity")


# ------------------------------------------------------------------------------------- from blocks to cells and probes


def _combinations(path: Path, document: Mapping[str, Any], part: str) -> list[tuple[str, dict[str, Any]]]:
    """Where each combination of the blocks of `grid` or `probes` stands, and its values."""
    found = []
    for number, block in enumerate(document.get(part, [])):
        where = f"{path}: {part}[{number}]"
        lists = {key: value if isinstance(value, list) else [value] for key, value in block.items()}
        for key, values in lists.items():
            if not values:
                raise InputError(f"{where}: {key}: found an empty list; give at least one value")
        if (count := math.prod(map(len, lists.values()))) > MOST_CELLS:
            raise InputError(
                f"{where}: its lists multiply to {count:,} combinations; give at most {MOST_CELLS:,} in a block"
            )
        found += [(where, dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]
    return found


def _cells(
    path: Path, document: Mapping[str, Any], shared: Mapping[str, Any], overrides: Mapping[str, Any]
) -> list[Cell]:
    combinations = [
        (where, _complete(where, {**shared, **values, **overrides}))
        for where, values in _combinations(path, document, "grid")
    ]
    # A defender does not know whether it is attacked: declared_f is the most that the experiment ever meets.
    most = max((byzantine_count(parameters) for _, parameters in combinations), default=0)
    cells = []
    for where, parameters in combinations:
        try:
            cells.append(make_cell({"declared_f": most, **parameters}, document.get("outside_guarantee", False)))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return cells


def _complete(where: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return complete(parameters)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _probe(where: str, values: Mapping[str, Any]) -> Probe:
    try:
        if "name" not in values:
            raise InputError(f"name is missing; give one of {', '.join(probes.PROBES)}")
        name, seeds = values["name"], checked("seeds", values["seeds"])
        options = {key: value for key, value in values.items() if key not in ("name", "seeds")}
        check_options(f"probe {name}", lookup(probes.PROBES, name, "probe").function, options)
        probes.check(name, options)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Probe(name, frozen(options), seeds)


# --------------------------------------------------------------------------------------------------- reading the files


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice and numbers without measure, and reads 1e-3 as one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                what = "is given twice" if isinstance(key, str) else "is not a text"
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {what}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """An int or a float of at most LARGEST, as float32 can hold it."""
        is_integer = node.tag.endswith("int")
        value = self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)
        if not -LARGEST <= value <= LARGEST:
            text = f"found the number {node.value:.20}; give one of at most {LARGEST:g}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return value


_Loader.yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read_checked(path: Path, definition: str) -> dict[str, Any]:
    """A YAML file that fits one of schema.yaml's definitions; InputError otherwise."""
    document, _ = _read(path)
    _check_structure(document, definition, path)
    return document


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: found {document!r:.60}; give a mapping, as the other files in experiments/ are")
    return document, text


@cache
def _validator(definition: str) -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load((EXPERIMENTS / "schema.yaml").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{definition}"})


def _check_structure(document: Any, definition: str, path: Path) -> None:
    """Check against one of schema.yaml's definitions; InputError for the error nearest the document's top."""
    error = min(_validator(definition).iter_errors(document), key=lambda each: len(each.path), default=None)
    if error is None:
        return
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    where = f"{path}: {place}" if place else f"{path}"
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        stranger = next(key for key in error.instance if key not in known)
        raise InputError(f"{where}: {unknown('key', stranger, known)}")
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        description = error.schema.get("properties", {}).get(missing, {}).get("description", "")
        raise InputError(f"{where}: {missing} is missing" + (f"; it is {description}" if description else ""))
    raise InputError(f"{where}: found {error.instance!r:.80}; give {error.schema.get('description', error.message)}")
