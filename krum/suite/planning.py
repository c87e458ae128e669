"""What the Snakefile asks: which experiments, which cells, where to write."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from krum.errors import InputError, unknown
from krum.simulation import run
from krum.simulation.cell import Cell
from krum.suite import claims, experiment, probes, provenance, store
from krum.suite.claims import Claim
from krum.suite.experiment import Experiment
from krum.suite.probes import Probe

CATEGORIES = {
    "paper": "2. The paper's figures",
    "supplement": "3. Its supplement",
    "beyond": "4. Beyond the paper",
    "review": "6. The review's objections",
}
KEEP_CLAIMS = {"rounds", "evaluate_every", "seeds", "folds"}  # overrides that leave every cell where it is
CONFIG: dict[str, Any] = {"results": "results", "figures": "figures", "device": "auto", "overrides": {}, "thin": None}
DEVICE = "KRUM_DEVICE"  # environment variable: the device of the workflow's jobs


@dataclass(frozen=True)
class Plan:
    """The experiments, and where and how they run."""

    experiments: Mapping[str, Experiment]
    claims: Sequence[Claim]
    results: str
    figures: str
    device: str
    overrides: Mapping[str, Any]

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """Every curve to compute, by file name; cells that experiments share appear once."""
        return {cell.slug: cell for spec in self.experiments.values() for cell in spec.cells}

    @cached_property
    def probes(self) -> dict[str, Probe]:
        """Every other measurement to take, by file name."""
        return {probe.slug: probe for spec in self.experiments.values() for probe in spec.probes}

    def measured_files(self, name: str) -> list[str]:
        """The curves and probes of an experiment, in the order of its YAML."""
        spec = self.experiments[name]
        curves = [f"{self.results}/curves/{cell.slug}.parquet" for cell in spec.cells]
        return curves + [f"{self.results}/probes/{probe.slug}.parquet" for probe in spec.probes]

    def names(self, review: bool) -> list[str]:
        """The experiments that answer the review, or the others."""
        return [name for name, spec in self.experiments.items() if (spec.part == "review") == review]

    def judged_files(self, review: bool) -> list[str]:
        """The results that the claims of a scorecard need."""
        names = {claim.experiment for claim in self.claims} & set(self.names(review))
        return [f"{self.results}/{name}.parquet" for name in sorted(names)]

    def scorecard_files(self, review: bool) -> list[str]:
        """The scorecard of the review's experiments, or of the others, where there are claims."""
        name = "review" if review else "scorecard"
        return [f"{self.figures}/{name}.html"] if self.judged_files(review) else []

    def figure_files(self, name: str) -> list[str]:
        """The figure of an experiment, in its formats."""
        return [f"{self.figures}/{name}.{ending}" for ending in ("png", "pdf")]

    def digest(self, measured: str) -> str:
        """The digest of the code that decides a curve or a probe."""
        return provenance.code_digest(self.cells.get(measured) or self.probes[measured])

    def data_files(self, measured: str) -> list[str]:
        """The data that a curve or a probe needs, as the workflow knows it."""
        dataset = (self.cells.get(measured) or self.probes[measured]).dataset
        return [] if dataset is None else [f"data/{dataset}.verified"]

    @cached_property
    def drawing_digest(self) -> str:
        """The digest of the code that draws and judges."""
        return provenance.drawing_digest()

    def threads(self, probe: str, cores: int) -> int:
        """All cores for a probe that measures time, which nothing may disturb; one for the others."""
        return cores if probes.PROBES[self.probes[probe].name].exclusive else 1

    @property
    def captions(self) -> dict[str, str]:
        """The figures' captions and the tally, as the claims' evaluation left them; without it, the titles."""
        texts = {"scorecard": "", **{name: spec.title for name, spec in self.experiments.items()}}
        for file in ("review-captions.json", "captions.json"):
            try:
                texts.update(json.loads(Path(self.results, file).read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue
        return texts

    @property
    def farewell(self) -> str:
        """Where a finished run has left its work."""
        verdicts = [
            f"Verdicts: {file}." for file in sorted(Path(self.figures).glob("*.md")) if file.name != "README.md"
        ]
        return " ".join([f"Figures: {self.figures}/*.png and *.pdf. Results: {self.results}/*.parquet.", *verdicts])

    def category(self, name: str) -> str:
        """Where an experiment's figure stands in the report."""
        return CATEGORIES[self.experiments[name].part]


def one_of(names: Iterable[str]) -> str:
    """A regular expression for one of the names, and for nothing where there are none."""
    return "|".join(names) or "(?!)"


def plan(root: Path, config: Mapping[str, Any]) -> Plan:
    """Check the workflow's configuration and every experiment below `root`. Raises InputError."""
    chosen = _checked(config)
    overrides, thin = chosen["overrides"], chosen.pop("thin")
    experiments = experiment.load_all(Path(root) / "experiments", overrides)
    claimed = Path(root) / "experiments" / "claims.yaml"
    # Claims speak of the grid as it stands in the files: with another one they are not evaluated.
    scorecard = claims.load(claimed) if set(overrides) <= KEEP_CLAIMS else []
    scorecard = claims.untouched(scorecard, overrides)
    claims.check(scorecard, experiments, claimed)
    if thin is not None:
        thinned = {name: experiment.thinned(spec, thin) for name, spec in experiments.items()}
        scorecard = [claim for claim in scorecard if thinned[claim.experiment] is experiments[claim.experiment]]
        experiments = thinned
    # For the jobs; no parameter of theirs, since another device need not compute a finished curve again.
    os.environ[DEVICE] = chosen["device"]
    return Plan(experiments, scorecard, **chosen)


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    for key in config:
        if key not in CONFIG:
            raise InputError(f"config: {unknown('key', key, CONFIG)}")
    chosen = {**CONFIG, **config}
    if chosen["device"] not in ("auto", "cpu", "cuda"):
        raise InputError(f"config: {unknown('device', chosen['device'], ('auto', 'cpu', 'cuda'))}")
    fits = {
        "results": (isinstance(chosen["results"], str) and chosen["results"], "a folder"),
        "figures": (isinstance(chosen["figures"], str) and chosen["figures"], "a folder"),
        "overrides": (isinstance(chosen["overrides"], Mapping), "a mapping of parameters to values"),
        "thin": (
            chosen["thin"] is None or (type(chosen["thin"]) is int and chosen["thin"] >= 1),
            "how many cells of each of the review's experiments to run",
        ),
    }
    for key, (fits_it, description) in fits.items():
        if not fits_it:
            raise InputError(f"config: {key}: found {chosen[key]!r:.60}; give {description}")
    return chosen


def plan_or_exit(root: str, config: Mapping[str, Any]) -> Plan:
    """The plan, or one line on standard error and the end of the program."""
    try:
        return plan(Path(root), config)
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
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])


def check_before_start(plan: Plan) -> None:
    """End the program with one line, before any job starts, if the device or the folders cannot be had."""
    if is_cluster_job():
        return
    elsewhere = any(flag in sys.argv for flag in ("--executor", "-e"))
    try:
        run.pick_device("auto" if elsewhere else plan.device)
        for folder in (plan.results, plan.figures):
            store.check_writable(Path(folder) / "any.file")
    except InputError as error:
        sys.exit(f"error: config: {error}")
