"""The Snakemake workflow, run for real on a small experiment in a copy of the project."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from small_project import ROOT, results, snakemake

from krum.suite import experiment


def jobs(output):
    """Planned jobs by rule, from Snakemake's table."""
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}


def edited(source, function):
    """A module's text with other code in a function, which computes the same."""
    before, head, rest = source.partition(f"\ndef {function}(")
    body, first_return, rest = rest.partition("\n    return ")
    assert first_return and "\ndef " not in body
    return f"{before}{head}{body}\n    _ = 1{first_return}{rest}"


def test_a_finished_workflow_has_every_file_and_nothing_left_to_do(finished, tmp_path):
    for name in ("small", "the-other"):
        for ending in ("png", "pdf"):
            assert (finished / "figures" / f"{name}.{ending}").stat().st_size > 1000
    assert not any(path.name.startswith(".") for path in (finished / "results").rglob("*"))
    small, other = (experiment.load(finished / "experiments" / f"{name}.yaml") for name in ("small", "the-other"))
    assert len({*small.cells, *other.cells}) == len(list((finished / "results" / "curves").iterdir())) == 6
    assert "Nothing to be done" in snakemake(finished, "-n", "--config", "device=cpu"), "the same curves"
    cell, alone = small.cells[-1], tmp_path / "alone.parquet"
    command = [sys.executable, "-m", "krum", "curve", "--cell", cell.to_json(), "--output", str(alone)]
    subprocess.run(command, cwd=finished, check=True, capture_output=True)
    assert alone.read_bytes() == results(finished)[Path(f"results/curves/{cell.slug}.parquet")], "in its own process"
    seconds, memory = (finished / "results" / "benchmarks" / f"{cell.slug}.tsv").read_text().splitlines()[1].split("\t")
    assert float(seconds) > 0 and 50 < float(memory) < 5000, "megabytes, of the job and not of who waits for it"


def test_an_edit_reruns_what_it_touches(finished, tmp_path):
    """A rule of one experiment, and how all are drawn."""
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    for path in (project / "krum" / "rules").glob("*.py"):
        if "\ndef medoid(" in (text := path.read_text()):
            path.write_text(edited(text, "medoid"))
    with (project / "krum" / "suite" / "report.py").open("a") as file:
        file.write("EDITED = 1\n")
    (project / "results" / "curves" / "of-an-older-experiment_0123456789.parquet").write_text("nothing asks for it")
    planned = jobs(snakemake(project, "-n"))
    assert planned["curve"] == 2 and planned["results"] == 1 and planned["figure"] == 2


def test_mistakes_are_told_in_one_line_and_nothing_is_lost(finished, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(finished, project)
    if not torch.cuda.is_available():
        with (project / "krum" / "simulation" / "run.py").open("a") as engine:
            engine.write("NUMBERS_AT_ONCE = 2**21\n")
        output = snakemake(project, "--config", "device=cuda", check=False)
        assert "error: config: device: cuda was asked for" in output and "Traceback" not in output
    experiment_file = project / "experiments" / "small.yaml"
    experiment_file.write_text(experiment_file.read_text().replace("average, krum", "average, krun"))
    output = snakemake(project, "--quiet", "all", check=False)
    assert "unknown aggregator 'krun'; did you mean 'krum'?" in output and "Traceback" not in output
    experiment_file.unlink()
    (project / "data" / "spambase.data").write_text("not spambase")
    (project / "data" / "spambase.verified").unlink()
    output = snakemake(project, "data/spambase.verified", check=False)
    assert "spambase.data" in output and "expected sha256:ebec58" in output and "delete it" in output
    assert "Traceback" not in output
    assert results(project) == results(finished)


def test_environment_yml_installs_requirements_txt_and_nothing_else():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"] == ["python >=3.11", "pip", {"pip": ["-r requirements.txt"]}]


def test_every_direct_dependency_is_pinned():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = [re.fullmatch(r"([\w-]+)(\[\w+\])?==[\w.]+", line) for line in lines if line]
    assert all(pins)
    names = {pin[1].lower().replace("_", "-") for pin in pins if pin}
    known_as = {"sklearn": "scikit-learn", "yaml": "pyyaml", "PIL": "pillow"}
    imported = set()
    for path in [*(ROOT / "krum").rglob("*.py"), *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            imported |= {known_as.get(module.partition(".")[0], module.partition(".")[0]) for module in modules}
    peers = (ROOT / "requirements-bench.txt").read_text().splitlines()
    names |= {line.partition("==")[0] for line in peers if not line.startswith("#")}
    own = {"krum", "benchmarks"} | {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert {name for name in imported - own if name not in sys.stdlib_module_names} <= names


def test_the_sweep_is_planned_for_slurm_without_a_cluster():
    slurm = ["--profile", "profiles/slurm", "--configfile", "profiles/smoke.yaml", "--dry-run", "--forceall"]
    assert jobs(snakemake(ROOT, *slurm, "--", "figure4"))["curve"] == 8
