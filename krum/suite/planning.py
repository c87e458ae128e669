"""What the Snakefile asks: which experiments, which cells, where to write. Imports no torch."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from krum.errors import InputError, unknown
from krum.simulation import models
from krum.simulation.cell import Cell
from krum.simulation.datasets import DATASETS
from krum.suite import claims, experiment, probes, provenance
from krum.suite.claims import Claim
from krum.suite.experiment import Experiment, Probe

CATEGORIES = {
    "paper": "2. The paper's figures",
    "supplement": "3. Its supplement",
    "beyond": "4. Beyond the paper",
    "review": "6. The review's objections",
}
KEEP_CLAIMS = {"rounds", "evaluate_every", "seeds", "folds"}  # overrides that leave every cell where it is
CONFIG: dict[str, Any] = {"results": "results", "figures": "figures", "device": "auto", "overrides": {}, "thin": None}

LONG = 5e11  # multiply-adds


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

    @property
    def long_curves(self) -> list[str]:
        """The curves that take more than about half a minute."""
        return [name for name, cell in self.cells.items() if work(cell) > LONG]

    @property
    def short_curves(self) -> list[str]:
        """The others."""
        return [name for name, cell in self.cells.items() if work(cell) <= LONG]

    def part_files(self, name: str) -> list[str]:
        """The curves and probes of an experiment, in the order of its YAML."""
        spec = self.experiments[name]
        curves = [f"{self.results}/curves/{cell.slug}.parquet" for cell in spec.cells]
        return curves + [f"{self.results}/probes/{probe.slug}.parquet" for probe in spec.probes]

    def of_part(self, review: bool) -> list[str]:
        """The experiments that answer the review, or the others."""
        return [name for name, spec in self.experiments.items() if (spec.part == "review") == review]

    def judged(self, review: bool) -> list[str]:
        """The results that the claims of a scorecard need."""
        names = {claim.experiment for claim in self.claims} & set(self.of_part(review))
        return [f"{self.results}/{name}.parquet" for name in sorted(names)]

    def scorecard_files(self, review: bool = False) -> list[str]:
        """The scorecard of the review's experiments, or of the others, where there are claims."""
        name = "review" if review else "scorecard"
        return [f"{self.figures}/{name}.html"] if self.judged(review) else []

    def figure_files(self, name: str) -> list[str]:
        """The figure of an experiment, in its formats."""
        return [f"{self.figures}/{name}.{ending}" for ending in ("png", "pdf")]

    def digest(self, curve: str) -> str:
        """The digest of the code that decides a curve."""
        return provenance.code_digest(self.cells[curve])

    def probe_digest(self, probe: str) -> str:
        """The digest of the code that decides a probe."""
        return provenance.probe_digest(self.probes[probe])

    def threads(self, probe: str, cores: int) -> int:
        """All cores for a probe that measures time, which nothing may disturb; one for the others."""
        return cores if probes.PROBES[self.probes[probe].name].alone else 1

    def probe_data(self, probe: str) -> list[str]:
        """The data that a probe needs, as the workflow knows it."""
        dataset = self.probes[probe].dataset
        return [] if dataset is None else [f"data/{dataset}.verified"]

    def figure_digest(self, *modules: str) -> str:
        """The digest of the code that draws or judges."""
        versions = [version(name) for name in ("matplotlib", "pandas", "scipy")]
        return hashlib.sha256("".join([*map(provenance.module_digest, modules), *versions]).encode()).hexdigest()

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


def work(cell: Cell) -> float:
    """Roughly a curve's multiply-adds."""
    data = DATASETS[cell.dataset]
    parameters = models.dimension(models.build(cell.model, dict(cell.model_options), data.features, data.classes))
    samples = (cell.workers - cell.byzantine) * cell.batch_size + dict(cell.attack_options).get("samples", 0)
    return 3.0 * cell.rounds * cell.seeds * parameters * samples


def plan(root: Path, config: Mapping[str, Any]) -> Plan:
    """Check the workflow's configuration and every experiment below `root`. Raises InputError."""
    for key in config:
        if key not in CONFIG:
            raise InputError(f"config: {unknown('key', key, CONFIG)}")
    chosen = {**CONFIG, **config}
    for key in ("results", "figures"):
        if not isinstance(chosen[key], str) or not chosen[key]:
            raise InputError(f"config: {key}: found {chosen[key]!r}; give a folder")
    if chosen["device"] not in ("auto", "cpu", "cuda"):
        raise InputError(f"config: {unknown('device', chosen['device'], ('auto', 'cpu', 'cuda'))}")
    thin = chosen.pop("thin")
    if thin is not None and (isinstance(thin, bool) or not isinstance(thin, int) or thin < 1):
        raise InputError(
            f"config: thin: found {thin!r}; give how many cells of each of the review's experiments to run"
        )
    if not isinstance(chosen["overrides"], Mapping):
        raise InputError(
            f"config: overrides: found {chosen['overrides']!r:.60}; give a mapping of parameters to values"
        )
    experiments = experiment.load_all(Path(root) / "experiments", chosen["overrides"])
    claimed = Path(root) / "experiments" / "claims.yaml"
    # Claims speak of the grid as it stands in the files: with another one they are not evaluated.
    scorecard = claims.load(claimed) if set(chosen["overrides"]) <= KEEP_CLAIMS else []
    scorecard = claims.untouched(scorecard, chosen["overrides"])
    claims.check(scorecard, experiments, claimed)
    if thin is not None:
        thinned = {name: _thinned(spec, thin) for name, spec in experiments.items()}
        scorecard = [claim for claim in scorecard if thinned[claim.experiment] is experiments[claim.experiment]]
        experiments = thinned
    # For the jobs; no parameter of theirs, since another device need not compute a finished curve again.
    os.environ[experiment.DEVICE] = chosen["device"]
    return Plan(experiments, scorecard, **chosen)


def _thinned(spec: Experiment, most: int) -> Experiment:
    """An experiment of the review with at most so many of its cells, evenly spread."""
    if spec.part != "review" or len(spec.cells) <= most:
        return spec
    return replace(spec, cells=tuple(spec.cells[number * len(spec.cells) // most] for number in range(most)))


def prefer_this_python() -> None:
    """Let the jobs' `python` be the one that runs Snakemake, also where its environment is not activated."""
    folder = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])


def clear_stale_locks(state: Path = Path(".snakemake")) -> None:
    """Remove the lock of a Snakemake that was killed here, so that the next one resumes its work unasked.

    Every run in this folder holds an operating-system lock, which ends with its process however that ends. Whoever
    gets it knows that no other run is alive, and that Snakemake's own lock files are left over.
    """
    if fcntl is None or "--mode" in sys.argv:  # a job that some executor started, within a living run
        return
    try:
        state.mkdir(exist_ok=True)
        handle = (state / "alive").open("w")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for lock in (state / "locks").glob("*.lock"):
            lock.unlink()
    except OSError:  # another run is alive, or the file system cannot tell: Snakemake decides
        return
    _HELD.append(handle)


_HELD: list[IO[str]] = []  # open for as long as this process lives


def check_device(device: str) -> None:
    """End the program with one line if the jobs of this machine cannot have the device, before any of them starts."""
    if device != "cuda" or "--mode" in sys.argv or any(flag in sys.argv for flag in ("--executor", "-e")):
        return
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: config: device: cuda was asked for, but torch finds no CUDA device; give auto or cpu")


def check_folders(*folders: str) -> None:
    """End the program with one line if results or figures cannot be written, before any job starts."""
    if "--mode" in sys.argv:
        return
    from krum.suite import store

    for key, folder in zip(("results", "figures"), folders, strict=True):
        if not store.lets_write(store.nearest_folder(Path(folder).absolute())):
            sys.exit(f"error: config: {key}: {folder} cannot be written to; unlock it, or give another folder")


def plan_or_exit(root: str, config: Mapping[str, Any]) -> Plan:
    """The plan, or one line on standard error and the end of the program."""
    try:
        return plan(Path(root), config)
    except InputError as error:
        sys.exit(f"error: {error}")
