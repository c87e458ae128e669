"""Experiments: YAML files under experiments/, unfolded into cells and probes, and checked before anything runs.

An experiment's grid is a list of blocks. In a block every parameter takes a value or a list of values, and stands for
the product of its lists. What a block leaves out comes from the experiment's own `parameters`, then from the defaults
of `krum.simulation.parameters.Cell`. A cell is one curve: one combination, with all its seeds.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from krum.errors import InputError, located, unknown
from krum.registry import LARGEST, check_options, lookup
from krum.simulation.parameters import FIELDS, Cell, byzantine_count, checked, complete, frozen, make_cell
from krum.suite import figures, probes
from krum.suite.probes import Probe

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NOT_EXPERIMENTS = ("claims", "fidelity", "schema")
# The workflow's rules: an experiment is a target like them.
RESERVED = "all claims curve data figure probe report results review review_claims review_scorecard scorecard".split()


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
    overrides: Mapping[str, Any]

    @property
    def measured(self) -> tuple[Cell | Probe, ...]:
        """Everything that it takes: its cells, then its probes."""
        return (*self.cells, *self.probes)


def load_all(folder: Path = EXPERIMENTS, overrides: Mapping[str, Any] | None = None) -> dict[str, Experiment]:
    """Every experiment in the folder, by name. Raises InputError for the first that cannot be run as it stands."""
    paths = sorted(path for path in Path(folder).glob("*.yaml") if path.stem not in NOT_EXPERIMENTS)
    return {path.stem: load(path, overrides) for path in paths}


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """One experiment. `overrides` are parameters that win over everything in the file, for a small run.

    Raises InputError for the first mistake in the file, in fidelity.yaml or in the overrides.
    """
    path, overrides = Path(path), overrides or {}
    if path.stem in RESERVED or not re.fullmatch(r"[a-z][a-z0-9_-]*", path.stem):
        names = f"small letters, digits, - and _, and none of {', '.join(RESERVED)}"
        raise InputError(f"{path}: the file's name names the experiment; give {names}")
    document = read_checked(path, "experiment")
    shared = document.get("parameters", {})
    for where, parameters in ((f"{path}: parameters", shared), ("overrides", overrides)):
        with located(where):
            complete(parameters)
    blocks = {part: list(_combinations(f"{path}: {part}", document.get(part, []))) for part in ("grid", "probes")}
    cells = _cells([(where, {**shared, **values, **overrides}) for where, values in blocks["grid"]], document)
    seeds = {"seeds": shared.get("seeds", FIELDS["seeds"].default)}
    forced = {key: value for key, value in overrides.items() if key == "seeds"}
    measured = [_probe(where, {**seeds, **values, **forced}) for where, values in blocks["probes"]]
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
        overrides=overrides,
    )


def general_fidelity(folder: Path = EXPERIMENTS) -> dict[str, str]:
    """Who says so, for what experiments do not say themselves."""
    return read_checked(folder / "fidelity.yaml", "fidelity")


# ------------------------------------------------------------------------------------- from blocks to cells and probes


def _combinations(where: str, blocks: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each combination of some blocks stands, and its values."""
    for number, block in enumerate(blocks):
        lists = [value if isinstance(value, list) else [value] for value in block.values()]
        for values in itertools.product(*lists):
            yield f"{where}[{number}]", dict(zip(block, values, strict=True))


def _cells(combinations: Iterable[tuple[str, Mapping[str, Any]]], document: Mapping[str, Any]) -> list[Cell]:
    completed, cells = [], []
    for where, parameters in combinations:
        with located(where):
            completed.append((where, complete(parameters)))
    # A defender does not know whether it is attacked: declared_f is the most that the experiment ever meets.
    most = max((byzantine_count(parameters) for _, parameters in completed), default=0)
    for where, parameters in completed:
        with located(where):
            cells.append(make_cell({"declared_f": most, **parameters}, document.get("outside_guarantee", False)))
    return cells


def _probe(where: str, values: Mapping[str, Any]) -> Probe:
    with located(where):
        name, seeds = values["name"], checked("seeds", values["seeds"])
        options = {key: value for key, value in values.items() if key not in ("name", "seeds")}
        check_options(f"probe {name}", lookup(probes.PROBES, name, "probe").function, options)
        probes.check(name, options)
    return Probe(name, frozen(options), seeds)


# --------------------------------------------------------------------------------------------------- reading the files


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice and numbers without measure, and reads 1e-3 as one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str) or keys.count(key) > 1:
                what = "is given twice" if isinstance(key, str) else "is not a text"
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} {what}", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        """An int or a float of at most LARGEST, as float32 can hold it."""
        is_integer = node.tag.endswith("int")
        value = self.construct_yaml_int(node) if is_integer else self.construct_yaml_float(node)
        if not -LARGEST <= value <= LARGEST:
            text = f"found the number {node.value:.20}; give one of at most {LARGEST:g}"
            raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return value


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def read_checked(path: Path, definition: str) -> dict[str, Any]:
    """A YAML file that fits one of schema.yaml's definitions; InputError otherwise."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from None
    check_structure(document, definition, str(path))
    return document


@cache
def _validator(definition: str) -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load((EXPERIMENTS / "schema.yaml").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator({**schema, "$ref": f"#/$defs/{definition}"})


def check_structure(document: Any, definition: str, where: str) -> None:
    """Check against one of schema.yaml's definitions; InputError for the error nearest the document's top."""
    error = min(_validator(definition).iter_errors(document), key=lambda each: len(each.path), default=None)
    if error is None:
        return
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    where = f"{where}: {place}" if place else where
    described = error.schema.get("properties", {})
    if error.validator == "additionalProperties":
        stranger = next(key for key in error.instance if key not in described)
        raise InputError(f"{where}: {unknown('key', stranger, described)}")
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        raise InputError(f"{where}: {missing} is missing; it is {described[missing]['description']}")
    raise InputError(f"{where}: found {error.instance!r:.80}; give {error.schema.get('description', error.message)}")
