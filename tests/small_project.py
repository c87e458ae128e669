"""A copy of the project with two small experiments that share two cells, and its workflow."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

EXPERIMENT = """
title: small
claim: none
parameters: {rounds: 30, seeds: 2}
grid:
  - dataset: spambase
    aggregator: [average, krum]
    attack: [none, gaussian]
    byzantine_fraction: 0.33
figure: {kind: curves}
"""
OTHER = EXPERIMENT.replace("[average, krum]", "[krum, medoid]").replace("small", "other")


def make(folder: Path) -> Path:
    """Put it into an empty folder."""
    for name in ("krum", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder)
    (folder / "docs").mkdir()
    for name in ("caption.rst", "scorecard.rst", "workflow.rst"):
        shutil.copy(ROOT / "docs" / name, folder / "docs")
    for name in ("data", "experiments"):
        (folder / name).mkdir()
    shutil.copy(ROOT / "data" / "spambase.data.gz", folder / "data")
    for name in ("fidelity", "schema"):
        shutil.copy(ROOT / "experiments" / f"{name}.yaml", folder / "experiments")
    (folder / "experiments" / "small.yaml").write_text(EXPERIMENT)
    (folder / "experiments" / "the-other.yaml").write_text(OTHER)
    return folder


def snakemake(project: Path, *arguments: str, check: bool = True) -> str:
    """Run its workflow; what it said."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def results(project: Path, *folders: str) -> dict[Path, bytes]:
    """The bytes of every result, and of what else is finished in some folders, by its path in the project."""
    paths = [path for folder in ("results", *folders) for path in sorted((project / folder).rglob("[!.]*.*"))]
    kept = (".parquet", ".png", ".pdf", ".html", ".md")
    return {path.relative_to(project): path.read_bytes() for path in paths if path.suffix in kept}
