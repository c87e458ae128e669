"""A cell: everything that decides one curve, and nothing else, declared once.

Each field of `Cell` carries its type, bounds, default and meaning. From the fields follow the parameters that an
experiment's YAML may set, what is refused and in which words, the columns of results, and docs/fidelity.md. To add a
parameter, write one field here and use it where it acts.
"""

import hashlib
import json
import operator
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, Self

from krum.errors import InputError, unknown
from krum.registry import LARGEST, canonical, check_options
from krum.rules.aggregators import AGGREGATORS
from krum.simulation.attacks import ATTACKS
from krum.simulation.datasets import DATASETS
from krum.simulation.models import MODELS, build, dimension

Options = tuple[tuple[str, Any], ...]
LARGEST_MODEL = 10**8  # parameters
BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def parameter(description: str, default: Any = MISSING, **bounds: float) -> Any:
    """A field of `Cell` that a YAML may set: what it is, its default, its BOUNDS."""
    return field(default=default, metadata={"description": description, "bounds": bounds})


def name_of(what: str, registry: Mapping[str, Any], description: str, default: Any = MISSING) -> Any:
    """A field of `Cell` that a YAML may set to a registered name."""
    return field(default=default, metadata={"description": description, "registry": registry, "what": what})


@dataclass(frozen=True)
class Measured:
    """Everything that decides one file of results: a cell, or a probe of `krum.suite.probes`.

    Options are sorted pairs, so that it can be hashed; their fields' names end in "options".
    """

    def to_json(self) -> str:
        """The canonical text; `from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote. Raises InputError for a text that is none, or where a value cannot be meant."""
        try:
            values = json.loads(text)
            values |= {key: frozen(dict(values[key])) for key in values if key.endswith("options")}
            measured = cls(**values)
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"not a {cls.__name__.lower()} ({type(error).__name__}: {error})") from None
        return measured.validated()

    def validated(self) -> Self:
        """The same, each value checked by itself and in its own type. Raises InputError."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What it is, for people."""
        raise NotImplementedError

    @property
    def slug(self) -> str:
        """A file name: the label, made unique by a hash of the canonical text."""
        return f"{self.label}_{hashlib.sha256(self.to_json().encode()).hexdigest()[:10]}"


@dataclass(frozen=True, kw_only=True)
class Cell(Measured):
    """Everything that decides a curve. A field without further words follows from the parameters beside it."""

    dataset: str = name_of("data set", DATASETS, "a data set, such as spambase")
    model: str = name_of("model", MODELS, "a model, by default the data set's own")
    model_options: Options
    aggregator: str = name_of("aggregator", AGGREGATORS, "a rule, such as krum")
    aggregator_options: Options
    attack: str = name_of("attack", ATTACKS, "an attack or a fault", "none")
    attack_options: Options
    workers: int = parameter("how many workers send a vector in each round", 20, at_least=1, at_most=10_000)
    byzantine: int = parameter("how many of the workers are Byzantine, or give a share", at_least=0, at_most=10_000)
    byzantine_fraction: float = parameter("the Byzantine share of the workers", 0.0, at_least=0, below=1)
    declared_f: int = parameter("the rule's f, by default the most of the experiment", at_least=0, at_most=10_000)
    batch_size: int = parameter("how many samples each worker draws in a round", 3, at_least=1, at_most=10**9)
    learning_rate: float = parameter("the length of a step", 0.1, above=0, at_most=LARGEST)
    worker_momentum: float = parameter("the share of its last vector that a worker keeps", 0.0, at_least=0, below=1)
    fault_rate: float = parameter("the probability that a worker misbehaves in a round", 0.0, at_least=0, at_most=0.5)
    points: int = parameter("how many points to make by deforming images; 0 for none", 0, at_least=0, at_most=10**15)
    rounds: int = parameter("how many rounds training takes", 500, at_least=1, at_most=10**8)
    evaluate_every: int = parameter("how many rounds lie between two evaluations", 25, at_least=1, at_most=10**8)
    folds: int = parameter("how many cross-validation folds there are", 10, at_least=2, at_most=1000)
    seeds: int = parameter("how many seeds are run; each holds out one fold", 10, at_least=1, at_most=10_000)
    compare_with: str | None = name_of(
        "aggregator", AGGREGATORS, "a rule whose choice from the same vectors is compared in every round", None
    )
    measure_gradient: bool = parameter("whether evaluations measure the gradient's norm and noise", False)

    @property
    def outside_guarantee(self) -> bool:
        """The declared f is more than the aggregator's guarantee covers with so many workers."""
        return not AGGREGATORS[self.aggregator].within_guarantee(self.workers, self.declared_f)

    @property
    def model_label(self) -> str:
        """The model with its sizes, such as "mlp-100-100"."""
        sizes = [str(size) for _, value in self.model_options if isinstance(value, tuple) for size in value]
        others = [f"{name}{value}" for name, value in self.model_options if not isinstance(value, tuple)]
        return "-".join([self.model, *sizes, *others])

    def validated(self) -> Self:
        """Each parameter checked by itself and in its own type, then how they fit each other. Raises InputError."""
        values = {name: checked(name, getattr(self, name)) for name in PARAMETERS}
        for name in NAMED:
            if not isinstance(values[name], str):
                raise InputError(f"{name}: found {values[name]!r:.60}; give a name")
        cell = replace(self, **values)
        _check_fit(cell, outside_guarantee=True)
        if _is_silent(cell):
            raise InputError(f"attack {cell.attack}: found nobody; give byzantine or fault_rate")
        return cell

    @property
    def label(self) -> str:
        """Its data set, rule and attack."""
        attack = self.attack if self.attack == "none" else f"{self.byzantine}-{self.attack}"
        return f"{self.dataset}_{self.aggregator}_{attack}"


FIELDS: dict[str, Field] = {each.name: each for each in fields(Cell)}
PARAMETERS = [name for name, each in FIELDS.items() if each.metadata]
OPTIONS = [name for name, each in FIELDS.items() if each.type == Options]
NAMED = [name.removesuffix("_options") for name in OPTIONS]  # model, aggregator, attack
ATTACKERS = ("byzantine", "byzantine_fraction", "fault_rate")  # who attacks: one of these


def frozen(options: Mapping[str, Any]) -> Options:
    """Options as sorted pairs, lists as tuples."""
    return tuple(sorted((key, tuple(v) if isinstance(v, list | tuple) else v) for key, v in options.items()))


def make_cell(parameters: Mapping[str, Any], outside_guarantee: bool = False) -> Cell:
    """The cell of some parameters as in an experiment's YAML, with the rest at their defaults.

    `declared_f` is by default the cell's own number of Byzantine workers. Raises InputError where a parameter is
    unknown or wrong, or where they do not fit each other; unless `outside_guarantee`, also where the rule's guarantee
    does not cover the declared f.
    """
    values = complete(parameters)
    for required in ("dataset", "aggregator"):
        if required not in values:
            raise InputError(f"{required} is missing; give a name")
    byzantine = byzantine_count(values)
    if "byzantine" in parameters:
        if "byzantine_fraction" in parameters:
            raise InputError(f"byzantine: found {values['byzantine']} beside a byzantine_fraction; give one of them")
        values["byzantine_fraction"] = values["byzantine"] / values["workers"]
    values = {"model": DATASETS[values["dataset"]].model, "declared_f": byzantine, **values, "byzantine": byzantine}
    for name in NAMED:
        values[name], options = _name_and_options(values[name])
        values[f"{name}_options"] = frozen(options)
    cell = Cell(**values)
    _check_fit(cell, outside_guarantee)
    if _is_silent(cell):
        said = [name for name in ATTACKERS if name in parameters]  # a zero that is said means none, as in a sweep
        if cell.byzantine_fraction or not said:
            found = f"a share of {cell.byzantine_fraction:g} among {cell.workers} workers" if said else "nobody"
            raise InputError(f"attack {cell.attack}: found {found}; give byzantine, byzantine_fraction or fault_rate")
    if not byzantine and (cell.attack == "none" or not cell.fault_rate):
        cell = replace(cell, attack="none", attack_options=(), fault_rate=0.0)
    return cell if byzantine else replace(cell, byzantine_fraction=0.0)


def complete(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, each checked by itself and in its own type, and the defaults of those that are not given.

    Raises InputError for the first that is unknown, of another type or out of bounds.
    """
    for name in parameters:
        if name not in PARAMETERS:
            raise InputError(unknown("parameter", name, PARAMETERS))
    defaults = {name: FIELDS[name].default for name in PARAMETERS if FIELDS[name].default is not MISSING}
    return defaults | {name: checked(name, value) for name, value in parameters.items()}


def byzantine_count(parameters: Mapping[str, Any]) -> int:
    """`floor(byzantine_fraction * workers)` in exact decimal arithmetic, or `byzantine`; none where nobody attacks."""
    if _name_and_options(parameters["attack"])[0] == "none":
        return 0
    if "byzantine" in parameters:
        return parameters["byzantine"]
    return int(Fraction(str(parameters["byzantine_fraction"])) * parameters["workers"])


def _name_and_options(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`krum`, or `{name: multi-krum, m: 5}`."""
    if isinstance(value, str):
        return value, {}
    return value["name"], {key: option for key, option in value.items() if key != "name"}


# ------------------------------------------------------------------------------------------ checks of one parameter


def checked(name: str, value: Any) -> Any:
    """A parameter's value in its own type, 20.0 workers as 20, and a name as the public one.

    Raises InputError where it cannot be meant.
    """
    kind: Any = FIELDS[name].type
    stated = FIELDS[name].metadata
    if kind in (int, float):
        bounds = stated["bounds"].items()
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and all(BOUNDS[word](value, bound) for word, bound in bounds):
            if kind is float or value == int(value):
                return kind(value)
    elif (kind is bool and isinstance(value, bool)) or (value is None and FIELDS[name].default is None):
        return value
    elif kind is not bool and isinstance(value, str):
        return public_name(name, value)
    elif name in NAMED and isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return {**value, "name": public_name(name, value["name"])}
    raise InputError(f"{name}: found {value!r:.60}; give {_allowed(name)}")


def public_name(column: str, value: Any) -> Any:
    """A value under which something is registered, such as an aggregator, as its public name; any other as it is.

    Raises InputError for an unknown name.
    """
    stated = FIELDS[column].metadata if column in FIELDS else {}
    return canonical(value, stated["registry"], stated["what"]) if "registry" in stated else value


def _allowed(name: str) -> str:
    """What a parameter may be, such as "an integer, at least 1 and at most 10,000: how many workers ..."."""
    kind: Any = FIELDS[name].type
    stated = FIELDS[name].metadata
    words = {int: "an integer", float: "a number", bool: "true or false"}.get(kind, "a name")
    if name in NAMED:
        words += ", or a mapping with a name and options such as {name: multi-krum, m: 5}"
    elif kind in (int, float):
        words += ", " + " and ".join(f"{word.replace('_', ' ')} {bound:,}" for word, bound in stated["bounds"].items())
    return f"{words}: {stated['description']}"


# ------------------------------------------------------------------------------ checks of what must fit each other


def _check_fit(cell: Cell, outside_guarantee: bool) -> None:
    _check_model_and_data(cell)
    _check_attack(cell)
    _check_rule(cell, outside_guarantee)


def _is_silent(cell: Cell) -> bool:
    """An attack that nobody commits."""
    return cell.attack != "none" and not cell.byzantine and not cell.fault_rate


def _check_model_and_data(cell: Cell) -> None:
    dataset, options = DATASETS[cell.dataset], dict(cell.model_options)
    check_options(f"model {cell.model}", MODELS[cell.model], options)
    if (size := dimension(build(cell.model, options, dataset.features, dataset.classes))) > LARGEST_MODEL:
        raise InputError(f"model {cell.model} has {size:,} parameters; give one of at most {LARGEST_MODEL:,}")
    if cell.points and dataset.standardise:
        raise InputError(f"points: {cell.dataset} holds no images to deform; give mnist")
    fold = dataset.samples - -(-dataset.samples // cell.folds)
    if cell.batch_size > fold:
        raise InputError(f"batch_size: found {cell.batch_size}; a fold of {cell.dataset} trains on {fold} samples")


def _check_attack(cell: Cell) -> None:
    attack = ATTACKS[cell.attack]
    check_options(f"attack {cell.attack}", attack.function, dict(cell.attack_options))
    if cell.attack == "none":
        return
    if cell.byzantine >= cell.workers:
        raise InputError(f"byzantine: found {cell.byzantine} of {cell.workers} workers; one at least is honest")
    if cell.fault_rate and cell.byzantine_fraction:
        raise InputError(f"fault_rate: found {cell.fault_rate:g} beside a byzantine_fraction; give one of them")
    if cell.fault_rate and (attack.least > 1 or attack.lasting):
        raise InputError(f"fault_rate: {cell.attack} takes several workers or several rounds; give another attack")
    if 0 < cell.byzantine < attack.least:
        raise InputError(
            f"attack {cell.attack}: found {cell.byzantine} Byzantine workers; give at least {attack.least}"
        )


def _check_rule(cell: Cell, outside_guarantee: bool) -> None:
    rule = AGGREGATORS[cell.aggregator]
    try:
        rule.check(cell.workers, cell.declared_f, dict(cell.aggregator_options), outside_guarantee)
    except InputError as error:
        inside = outside_guarantee or rule.within_guarantee(cell.workers, cell.declared_f)
        hint = "" if inside else ", or say outside_guarantee: true to run it all the same"
        raise InputError(f"{error}{hint}") from None
    if cell.compare_with is None:
        return
    other = AGGREGATORS[cell.compare_with]
    if other.sees != "distances" or rule.sees != "distances" or rule.fixed_weights:
        raise InputError(f"compare_with: {cell.aggregator} and {cell.compare_with} must both choose by distances")
    if set(other.needs) - {"f"}:
        raise InputError(f"compare_with: {cell.compare_with} depends on chance; give a rule that does not")
    other.check(cell.workers, cell.declared_f, {}, outside_guarantee)
