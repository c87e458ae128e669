"""What the Snakefile asks: which experiments, which cells, where to write."""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from krum.errors import InputError, located
from krum.simulation import run
from krum.simulation.parameters import Cell
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

    def figure_files(self, name: str) -> list[str]:
        """The figure of an experiment, in its formats."""
        return [f"{self.figures}/{name}.{ending}" for ending in ("png", "pdf")]

    def all_files(self, review: bool) -> list[str]:
        """The figures of the review's experiments, or of the others, and their scorecard, where there are claims."""
        scorecard = f"{self.figures}/{'review' if review else 'scorecard'}.html"
        figures = [file for name in self.names(review) for file in self.figure_files(name)]
        return [*figures, scorecard] if self.judged_files(review) else figures

    def digest(self, slug: str) -> str:
        """The digest of the code that decides a curve or a probe."""
        return provenance.code_digest(self.cells.get(slug) or self.probes[slug])

    def data_files(self, slug: str) -> list[str]:
        """The data that a curve or a probe needs, as the workflow knows it."""
        dataset = (self.cells.get(slug) or self.probes[slug]).dataset
        return [] if dataset is None else [f"data/{dataset}.verified"]

    def threads(self, slug: str, cores: int) -> int:
        """All cores for a probe that measures time, which nothing may disturb; one for the others."""
        return cores if probes.PROBES[self.probes[slug].name].exclusive else 1

    def category(self, name: str) -> str:
        """Where an experiment's figure stands in the report."""
        return CATEGORIES[self.experiments[name].part]

    @property
    def captions(self) -> dict[str, str]:
        """The figures' captions and the tally, as the claims' evaluation left them; without it, the titles."""
        texts = {"scorecard": "", **{name: spec.title for name, spec in self.experiments.items()}}
        for file in ("review-captions.json", "captions.json"):
            with suppress(OSError, ValueError):
                texts.update(json.loads(Path(self.results, file).read_text(encoding="utf-8")))
        return texts

    @property
    def farewell(self) -> str:
        """Where a finished run has left its work."""
        scorecards = [Path(self.figures, f"{name}.md") for name in ("scorecard", "review")]
        verdicts = [f" Verdicts: {path}." for path in scorecards if path.exists()]
        return f"Figures: {self.figures}/*.png and *.pdf. Results: {self.results}/*.parquet.{''.join(verdicts)}"


def one_of(names: Iterable[str]) -> str:
    """A regular expression for one of the names, and for nothing where there are none."""
    return "|".join(names) or "(?!)"


def plan(root: Path | str, config: Mapping[str, Any]) -> Plan:
    """Check the workflow's configuration and every experiment below `root`. Raises InputError."""
    experiment.check_structure(config, "config", "config")
    chosen = {**CONFIG, **config}
    folder, overrides, thin = Path(root) / "experiments", chosen["overrides"], chosen.pop("thin")
    experiments = experiment.load_all(folder, overrides)
    # Claims speak of the grid as it stands in the files: with another one they are not evaluated.
    scorecard = claims.load(folder / "claims.yaml") if set(overrides) <= KEEP_CLAIMS else []
    scorecard = claims.untouched(scorecard, overrides)
    claims.check(scorecard, experiments, folder / "claims.yaml")
    for name, spec in experiments.items():
        if thin is not None and spec.part == "review" and len(spec.cells) > thin:
            spread = (number * len(spec.cells) // thin for number in range(thin))
            experiments[name] = replace(spec, cells=tuple(spec.cells[index] for index in spread))
            scorecard = [claim for claim in scorecard if claim.experiment != name]
    # For the jobs; no parameter of theirs, since another device need not compute a finished curve again.
    os.environ[DEVICE] = chosen["device"]
    return Plan(experiments, scorecard, **chosen)


def plan_or_exit(root: str, config: Mapping[str, Any]) -> Plan:
    """The plan, or one line on standard error and the end of the program."""
    try:
        return plan(root, config)
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
        with located("error: config"):
            run.pick_device("auto" if elsewhere else plan.device)
            for folder in (plan.results, plan.figures):
                store.check_writable(Path(folder) / "any.file")
    except InputError as error:
        sys.exit(str(error))
