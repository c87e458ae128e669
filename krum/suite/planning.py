"""What the Snakefile asks: which experiments, which cells, where to write."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from krum.errors import InputError, located
from krum.simulation import run
from krum.simulation.parameters import Cell
from krum.suite import claims, experiment, reading, store
from krum.suite.claims import Claim
from krum.suite.experiment import Experiment
from krum.suite.probes import Probe

CATEGORIES = {  # of the report
    "paper": "2. The paper's figures",
    "supplement": "3. Its supplement",
    "beyond": "4. Beyond the paper",
    "review": "6. The review's objections",
}
KEEP_CLAIMS = {"rounds", "evaluate_every", "seeds", "folds"}  # overrides that leave every cell where it is
CONFIG: dict[str, Any] = {"results": "results", "figures": "figures", "device": "auto", "overrides": {}}
DEVICE = "KRUM_DEVICE"  # environment variable: the device of the workflow's jobs


@dataclass(frozen=True)
class Plan:
    """The experiments, and where and how they run. `review`: of those that answer the review, or of the others."""

    experiments: Mapping[str, Experiment]
    claims: Sequence[Claim]
    results: str
    figures: str
    device: str
    overrides: Mapping[str, Any]

    @cached_property
    def measured(self) -> dict[str, Cell | Probe]:
        """Every curve and probe to compute, by file name; those that experiments share appear once."""
        return {one.slug: one for spec in self.experiments.values() for one in spec.measured}

    def measured_files(self, name: str) -> list[str]:
        """The curves and probes of an experiment, in the order of its YAML."""
        spec = self.experiments[name]
        curves = [f"{self.results}/curves/{cell.slug}.parquet" for cell in spec.cells]
        return curves + [f"{self.results}/probes/{probe.slug}.parquet" for probe in spec.probes]

    def data_files(self, slug: str) -> list[str]:
        """The data that a curve or a probe needs, as the workflow knows it."""
        dataset = self.measured[slug].dataset
        return [] if dataset is None else [f"data/{dataset}.verified"]

    def names(self, review: bool) -> list[str]:
        """The experiments."""
        return [name for name, spec in self.experiments.items() if (spec.part == "review") == review]

    def judged_files(self, review: bool) -> list[str]:
        """The results that the claims of a scorecard need."""
        names = {claim.experiment for claim in self.claims} & set(self.names(review))
        return [f"{self.results}/{name}.parquet" for name in sorted(names)]

    def all_files(self, review: bool) -> list[str]:
        """The figures, and their scorecard where there are claims."""
        pictures = [f"{self.figures}/{name}.{end}" for name in self.names(review) for end in ("png", "pdf")]
        scorecard = f"{self.figures}/{'review' if review else 'scorecard'}.html"
        return [*pictures, scorecard] if self.judged_files(review) else pictures

    @property
    def captions(self) -> dict[str, str]:
        """The figures' captions and the tally, as the claims' evaluation left them; without it, the titles."""
        texts = {"scorecard": "", **{name: spec.title for name, spec in self.experiments.items()}}
        for name in ("review", "claims"):
            with suppress(InputError):
                texts |= store.read(Path(self.results, f"{name}.parquet"))[1]["captions"]
        return texts


def plan(root: Path | str, config: Mapping[str, Any]) -> Plan:
    """Check the workflow's configuration and every experiment below `root`. Raises InputError."""
    reading.check_structure(config, "config", "config")
    chosen = {**CONFIG, **config}
    folder, overrides = Path(root) / "experiments", chosen["overrides"]
    experiments = experiment.load_all(folder, overrides)
    # Claims speak of the grid as it stands in the files: with another one they are not evaluated.
    scorecard = claims.load(folder / "claims.yaml") if set(overrides) <= KEEP_CLAIMS else []
    scorecard = claims.untouched(scorecard, overrides)
    claims.check(scorecard, experiments, folder / "claims.yaml")
    # For the jobs; no parameter of theirs, since another device need not compute a finished curve again.
    os.environ[DEVICE] = chosen["device"]
    return Plan(experiments, scorecard, **chosen)


@contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """End the program with one line on standard error where an InputError arises."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")


def is_cluster_job() -> bool:
    """Whether this Snakemake is one job of another one, which an executor has started."""
    return "--mode" in sys.argv


def has_job_server() -> bool:
    """Whether jobs are forked from a server: only on Linux is forking after imports safe."""
    return sys.platform == "linux" and not is_cluster_job()


def prefer_this_python() -> None:
    """Let the jobs' `python` be the one that runs Snakemake, also where its environment is not activated."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def check_before_start(plan: Plan) -> None:
    """Raise InputError, before any job starts, where the device or the folders cannot be had."""
    if is_cluster_job():
        return
    elsewhere = any(flag in sys.argv for flag in ("--executor", "-e"))
    with located("config"):
        run.pick_device("auto" if elsewhere else plan.device)
        for folder in (plan.results, plan.figures):
            store.check_writable(Path(folder) / "any.file")
