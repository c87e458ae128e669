"""Experiments: YAML files under experiments/, checked and unfolded into cells, without importing torch.

An experiment's grid is a list of blocks. In a block every parameter takes a value or a list of values, and stands for
the product of its lists. What a block leaves out comes from the experiment's own `parameters`, then from
defaults.yaml. A cell is one curve: one combination, with all its seeds.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from krum.errors import InputError, unknown
from krum.registry import LARGEST, check_options, lookup
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.cell import Cell, Options, frozen
from krum.simulation.datasets import DATASETS
from krum.simulation.models import MODELS, build, dimension
from krum.suite import probes
from krum.suite.figures import check as figures

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NOT_EXPERIMENTS = ("claims", "defaults", "schema")
TAKEN = (
    "all",
    "claims",
    "curve",
    "data",
    "figure",
    "probe",
    "report",
    "results",
    "review",
    "scorecard",
)  # the workflow's rules; an experiment is a target like them

DEVICE = "KRUM_DEVICE"  # environment variable: the device of the workflow's jobs
MOST_CELLS = 100_000  # of an experiment
MOST_NODES = 100_000  # of a YAML file, its aliases written out
LARGEST_MODEL = 10**8  # parameters


@dataclass(frozen=True)
class Probe:
    """A measurement that is no training run, see `krum.probes`: everything that decides its rows."""

    name: str
    options: Options
    seeds: int

    def to_json(self) -> str:
        """The canonical text of the probe; `Probe.from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Probe":
        """The probe that `to_json` wrote. Raises InputError where it is none that an experiment could ask for."""
        try:
            fields = json.loads(text)
            probe = cls(**{**fields, "options": frozen(dict(fields["options"]))})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"not a probe ({type(error).__name__}: {error})") from None
        return _probe("not a probe", {**dict(probe.options), "name": probe.name, "seeds": probe.seeds}, None, 1)

    @property
    def dataset(self) -> str | None:
        """The data set that it trains on, if any."""
        if not probes.PROBES[self.name].training:
            return None
        return probes.all_options(self.name, dict(self.options))["dataset"]

    @property
    def slug(self) -> str:
        """A file name for people, made unique by a hash of the canonical text."""
        return f"{self.name}_{hashlib.sha256(self.to_json().encode()).hexdigest()[:10]}"


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


def load_all(folder: Path = EXPERIMENTS, overrides: Mapping[str, Any] | None = None) -> dict[str, Experiment]:
    """Every experiment in the folder, by name. Raises InputError for the first that cannot be run as it stands."""
    paths = sorted(path for path in Path(folder).glob("*.yaml") if path.stem not in NOT_EXPERIMENTS)
    return {path.stem: load(path, overrides) for path in paths}


def load(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """One experiment. `overrides` are parameters that win over everything in the file, for a small run.

    Raises InputError for the first mistake in the file, in defaults.yaml or in the overrides.
    """
    path = Path(path)
    if path.stem in TAKEN or not re.fullmatch(r"[a-z][a-z0-9_-]*", path.stem):
        raise InputError(
            f"{path}: the file's name names the experiment; give small letters, digits, - and _, "
            f"and none of {', '.join(TAKEN)}"
        )
    document, source = _read(path)
    defaults_path = path.parent / "defaults.yaml"
    defaults, _ = _read(defaults_path)
    _validate(document, "experiment", str(path))
    _validate(defaults, "defaults", str(defaults_path))
    overrides = {} if overrides is None else overrides
    _validate(overrides, "parameters", "overrides")
    shared = document.get("parameters", {})
    blocks: list[tuple[str, dict[str, Any]]] = []
    for number, block in enumerate(document.get("grid", [])):
        where = f"{path}: grid[{number}]"
        for combination in _unfolded(where, block):
            _validate(combination, "parameters", where)
            chosen = {**defaults["parameters"], **shared, **combination, **overrides}
            whole = {key: int(v) for key, v in chosen.items() if _schema_type(key) == "integer"}  # 20.0 is 20, too
            blocks.append((where, {**chosen, **whole}))
    # A defender does not know whether it is attacked: declared_f is the most that the experiment ever meets.
    most = max((_byzantine(parameters) for _, parameters in blocks), default=0)
    outside = document.get("outside_guarantee", False)
    cells = [_cell(where, parameters, defaults["models"], most, outside) for where, parameters in blocks]
    seeds = {**defaults["parameters"], **shared, **overrides}["seeds"]
    measured = [
        _probe(f"{path}: probes[{number}]", combination, overrides.get("seeds"), seeds)
        for number, block in enumerate(document.get("probes", []))
        for combination in _unfolded(f"{path}: probes[{number}]", block)
    ]
    if not cells and not measured:
        raise InputError(f"{path}: nothing to run; give a grid of training runs, or probes")
    figures.check(f"{path}: figure", document["figure"], cells, {probe.name for probe in measured})
    reference = document["figure"].get("reference", {}).get("aggregator")
    calm = {cell.aggregator for cell in cells if not cell.byzantine}
    if reference is not None and reference not in calm:
        raise InputError(
            f"{path}: figure.reference.aggregator: {reference!r} has no unattacked curve in the grid; "
            f"give one that has ({', '.join(sorted(calm)) or 'none has'})"
        )
    return Experiment(
        name=path.stem,
        title=document["title"],
        claim=document["claim"],
        figure=document["figure"],
        cells=tuple(dict.fromkeys(cells)),
        probes=tuple(dict.fromkeys(measured)),
        part=document.get("part", "beyond"),
        fidelity={**defaults["fidelity"], **document.get("fidelity", {})},
        source=source,
        overrides=overrides,
    )


def _unfolded(where: str, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The product of a block's lists; a single value is a list of one."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in block.items()}
    for key, values in lists.items():
        if not values:
            raise InputError(f"{where}.{key}: found an empty list; give at least one value")
    if (count := math.prod(map(len, lists.values()))) > MOST_CELLS:
        raise InputError(f"{where}: its lists multiply to {count:,} combinations; give at most {MOST_CELLS:,}")
    return [dict(zip(lists, combination, strict=True)) for combination in itertools.product(*lists.values())]


def _probe(where: str, options: dict[str, Any], seeds_override: int | None, seeds: int) -> Probe:
    try:
        if "name" not in options:
            raise InputError(f"name is missing; give one of {', '.join(probes.PROBES)}")
        name, own_seeds = options["name"], options.get("seeds", seeds)
        probe = lookup(probes.PROBES, name, "probe")
        if isinstance(own_seeds, bool) or not isinstance(own_seeds, int) or own_seeds < 1:
            raise InputError(f"seeds: found {own_seeds!r}; give a positive integer")
        options = {key: value for key, value in options.items() if key not in ("name", "seeds")}
        _check_numbers(options, where)
        check_options(f"probe {name}", probe.function, options)
        probes.check(name, options)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Probe(name, frozen(options), own_seeds if seeds_override is None else seeds_override)


def _byzantine(parameters: Mapping[str, Any]) -> int:
    """`floor(fraction * workers)` in exact decimal arithmetic, and none where nobody attacks."""
    if _named(parameters["attack"])[0] == "none":
        return 0
    return int(Fraction(str(parameters["byzantine_fraction"])) * parameters["workers"])


def _cell(
    where: str, parameters: Mapping[str, Any], models: Mapping[str, Any], most_byzantine: int, outside_guarantee: bool
) -> Cell:
    try:
        for required in ("dataset", "aggregator"):
            if required not in parameters:
                raise InputError(f"{required} is missing; give a name or a list of names")
        dataset = lookup(DATASETS, parameters["dataset"], "data set")
        if "model" not in parameters and dataset.name not in models:
            raise InputError(f"no model for data set {dataset.name!r}; give one here or under models in defaults.yaml")
        model, model_options = _named(parameters.get("model", models.get(dataset.name)))
        aggregator, aggregator_options = _named(parameters["aggregator"])
        attack, attack_options = _named(parameters["attack"])
        check_options(f"model {model}", lookup(MODELS, model, "model"), model_options)
        check_options(f"attack {attack}", lookup(ATTACKS, attack, "attack").function, attack_options)
        parameters_of_model = dimension(build(model, model_options, dataset.features, dataset.classes))
        if parameters_of_model > LARGEST_MODEL:
            raise InputError(
                f"model {model} has {parameters_of_model:,} parameters; give one of at most {LARGEST_MODEL:,}"
            )
        byzantine = _byzantine(parameters)
        fault_rate = 0.0 if attack == "none" else float(parameters.get("fault_rate", 0.0))
        if fault_rate and byzantine:
            raise InputError(
                f"fault_rate: found {fault_rate:g} beside byzantine_fraction {parameters['byzantine_fraction']}; give "
                f"one of them: workers that misbehave now and then, or Byzantine ones that always do"
            )
        if fault_rate and (ATTACKS[attack].least > 1 or ATTACKS[attack].lasting):
            raise InputError(f"fault_rate: {attack} takes several workers or several rounds; give another attack")
        if 0 < byzantine < ATTACKS[attack].least:
            raise InputError(
                f"attack {attack} takes at least {ATTACKS[attack].least} Byzantine workers; "
                f"byzantine_fraction {parameters['byzantine_fraction']} of {parameters['workers']} is {byzantine}"
            )
        declared_f = parameters.get("declared_f", most_byzantine)
        rule = lookup(AGGREGATORS, aggregator, "aggregator")
        try:
            rule.check(parameters["workers"], declared_f, aggregator_options, outside_guarantee)
        except InputError as error:
            hint = (
                ""
                if outside_guarantee or rule.within_guarantee(parameters["workers"], declared_f)
                else (", or say outside_guarantee: true to run it all the same")
            )
            raise InputError(f"{error}{hint}") from None
        compare_with = parameters.get("compare_with")
        if compare_with is not None:
            other = lookup(AGGREGATORS, compare_with, "aggregator")
            if "distances" != other.sees or rule.sees != other.sees or rule.fixed_weights:
                raise InputError(f"compare_with: {aggregator} and {compare_with} must both choose by distances")
            if set(other.needs) - {"f"}:
                raise InputError(f"compare_with: {compare_with} depends on chance; give a rule that does not")
            other.check(parameters["workers"], declared_f, {}, outside_guarantee)
        if byzantine >= parameters["workers"]:
            raise InputError(f"byzantine_fraction {parameters['byzantine_fraction']} leaves no honest worker")
        if parameters.get("points") and dataset.standardise:
            raise InputError(f"points: {dataset.name} holds no images to deform; give mnist")
        fold = dataset.samples - -(-dataset.samples // parameters["folds"])
        if parameters["batch_size"] > fold:
            raise InputError(
                f"batch_size {parameters['batch_size']} is more than the training fold of {dataset.name} holds; "
                f"give at most {fold}"
            )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Cell(
        dataset=dataset.name,
        model=model,
        model_options=frozen(model_options),
        aggregator=aggregator,
        aggregator_options=frozen(aggregator_options),
        attack=attack if byzantine or fault_rate else "none",
        attack_options=frozen(attack_options if byzantine or fault_rate else {}),
        workers=parameters["workers"],
        byzantine=byzantine,
        byzantine_fraction=float(parameters["byzantine_fraction"]) if byzantine else 0.0,
        declared_f=declared_f,
        batch_size=parameters["batch_size"],
        learning_rate=float(parameters["learning_rate"]),
        rounds=parameters["rounds"],
        evaluate_every=parameters["evaluate_every"],
        folds=parameters["folds"],
        seeds=parameters["seeds"],
        compare_with=compare_with,
        measure_gradient=parameters.get("measure_gradient", False),
        fault_rate=fault_rate,
        worker_momentum=float(parameters.get("worker_momentum", 0.0)),
        points=parameters.get("points", 0),
    )


def cell_from_json(text: str) -> Cell:
    """The cell that `Cell.to_json` wrote. Raises InputError where it is none that an experiment could ask for."""
    return _checked_cell(Cell.from_json(text))


def _checked_cell(cell: Cell) -> Cell:
    """The cell, if it is what its own parameters make: InputError otherwise."""
    where = "not a cell"
    attack = {"name": cell.attack, **dict(cell.attack_options)} if cell.attack_options else cell.attack
    parameters = {
        **{key: value for key, value in asdict(cell).items() if not key.endswith("_options")},
        "model": {"name": cell.model, **_thawed(cell.model_options)},
        "aggregator": {"name": cell.aggregator, **_thawed(cell.aggregator_options)},
        "attack": attack,
    }
    byzantine = parameters.pop("byzantine")
    if cell.compare_with is None:
        del parameters["compare_with"]
    _validate(parameters, "parameters", where)
    made = _cell(where, parameters, {}, 0, outside_guarantee=True)
    for key, found in asdict(cell).items():
        expected = getattr(made, key)
        if found != expected or type(found) is not type(expected):
            raise InputError(f"{where}: {key}: found {found!r:.60}; with its other parameters it is {expected!r:.60}")
    assert byzantine == made.byzantine
    return cell


def _thawed(options: Options) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options}


def one_cell(parameters: Mapping[str, Any], folder: Path = EXPERIMENTS) -> Cell:
    """The cell of some parameters, with the rest as in defaults.yaml. Raises InputError."""
    _validate(parameters, "parameters", "parameters")
    defaults = read_checked(folder / "defaults.yaml", "defaults")
    whole = {**defaults["parameters"], **parameters}
    return _cell("parameters", whole, defaults["models"], _byzantine(whole), outside_guarantee=False)


def _named(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`krum`, or `{name: multi-krum, m: 5}`: a name and its options."""
    if isinstance(value, str):
        return value, {}
    return value["name"], {key: option for key, option in value.items() if key != "name"}


# ------------------------------------------------------------------------------------------- reading and validation


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also refuses a key given twice and aliases without end, and reads 1e-3 as a number."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _written_out(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not a text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many nodes there are where every alias is written out; an error where they have no end, or nearly none."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES  # until it is known: whoever meets it now is inside of it
        parts = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        within = 0 if isinstance(node, yaml.ScalarNode) else sum(_written_out(part, known) for part in parts)
        known[id(node)] = 1 + within
    if known[id(node)] > MOST_NODES:
        raise yaml.constructor.ConstructorError(None, None, "its aliases go round or grow without end", node.start_mark)
    return known[id(node)]


def defaults_fidelity(folder: Path = EXPERIMENTS) -> dict[str, str]:
    """Who says so, for what experiments do not change."""
    return read_checked(folder / "defaults.yaml", "defaults")["fidelity"]


def read_checked(path: Path, definition: str) -> dict[str, Any]:
    """A YAML file that fits one of schema.yaml's definitions; InputError otherwise."""
    document, _ = _read(path)
    _validate(document, definition, str(path))
    return document


def _read(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: found {document!r:.60}; give a mapping, as the other files in experiments/ are")
    return document, text


@cache
def _schema() -> dict[str, Any]:
    return yaml.safe_load((EXPERIMENTS / "schema.yaml").read_text(encoding="utf-8"))


def _schema_type(parameter: str) -> str | None:
    return _schema()["$defs"]["parameters"]["properties"].get(parameter, {}).get("type")


def _validate(document: Any, definition: str, where: str) -> None:
    """Check against one of schema.yaml's definitions; InputError for the error nearest the document's top."""
    schema = {**_schema(), "$ref": f"#/$defs/{definition}"}
    errors = sorted(jsonschema.Draft202012Validator(schema).iter_errors(document), key=lambda error: len(error.path))
    if errors:
        raise InputError(_in_one_line(errors[0], where))
    _check_numbers(document, where, "." if "grid[" in where else ": ")


def _check_numbers(value: Any, where: str, separator: str = ".") -> None:
    """Refuse numbers that the computation, in float32, could not hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, f"{where}{separator}{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _check_numbers(item, f"{where}[{number}]")
    elif isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
        raise InputError(f"{where}: found {value!r:.20}; give a number of at most {LARGEST:g}")


def _in_one_line(error: jsonschema.ValidationError, where: str) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    separator = "." if "grid[" in where else ": "
    where = f"{where}{separator}{path}" if path else where
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        stranger = next(key for key in error.instance if key not in known)
        return f"{where}: {unknown('key', stranger, known)}"
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        described = error.schema.get("properties", {}).get(missing, {}).get("description", "")
        return f"{where}: {missing} is missing" + (f"; it is {described}" if described else "")
    expected = error.schema.get("description", error.message)
    return f"{where}: found {error.instance!r:.80}; give {expected}"
