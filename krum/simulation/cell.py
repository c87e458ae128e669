"""A cell: everything that decides one curve, and nothing else."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from krum.errors import InputError
from krum.rules.aggregators import AGGREGATORS

Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Cell:
    """Everything that decides a curve, and nothing else. Options are sorted pairs, so that a cell can be hashed."""

    dataset: str
    model: str
    model_options: Options
    aggregator: str
    aggregator_options: Options
    attack: str
    attack_options: Options
    workers: int
    byzantine: int
    byzantine_fraction: float
    declared_f: int
    batch_size: int
    learning_rate: float
    rounds: int
    evaluate_every: int
    folds: int
    seeds: int
    compare_with: str | None = None
    measure_gradient: bool = False
    fault_rate: float = 0.0
    worker_momentum: float = 0.0
    points: int = 0

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

    def to_json(self) -> str:
        """The canonical text of the cell; `Cell.from_json` reads it back."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The cell that `to_json` wrote. Raises InputError where it is none."""
        try:
            fields = json.loads(text)
            for key in ("model_options", "aggregator_options", "attack_options"):
                fields[key] = frozen(dict(fields[key]))
            return cls(**fields)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"not a cell ({type(error).__name__}: {error})") from None

    @property
    def slug(self) -> str:
        """A file name for people, made unique by a hash of the canonical text."""
        attack = self.attack if self.attack == "none" else f"{self.byzantine}-{self.attack}"
        text = hashlib.sha256(self.to_json().encode()).hexdigest()[:10]
        return f"{self.dataset}_{self.aggregator}_{attack}_{text}"


def frozen(options: Mapping[str, Any]) -> Options:
    """Options as sorted pairs, lists as tuples."""
    return tuple(sorted((key, tuple(v) if isinstance(v, list | tuple) else v) for key, v in options.items()))


def make_cell(parameters: Mapping[str, Any]) -> Cell:
    """The cell of some parameters as in an experiment's YAML, with the rest at their defaults. Raises InputError."""
    from krum.suite import experiment  # until cells are checked here

    return experiment.one_cell(parameters)
