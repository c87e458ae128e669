"""The Snakemake workflow, run for real on a small experiment in a copy of the project."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from small_project import ROOT, results, snakemake

from krum.suite import experiment, planning


def jobs(output):
    """Planned jobs by rule, from Snakemake's table."""
    found = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE)}
    found["curve"] = found.get("curve", 0) + found.pop("long_curve", 0)
    return found


def test_every_curve_has_one_rule():
    plan = planning.plan(ROOT, {})
    assert sorted([*plan.long_curves, *plan.short_curves]) == sorted(plan.cells)
    assert plan.long_curves and plan.short_curves


def edit(project, file, before, after):
    path = project / file
    text = path.read_text()
    assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {file}"
    path.write_text(text.replace(before, after))


def test_workflow(project):
    """Shared cells run once; a target of its own per figure; an edit reruns what it touches, and nothing else."""
    assert jobs(snakemake(project, "-n"))["curve"] == 8
    assert jobs(snakemake(project, "-n", "small"))["curve"] == 6
    assert jobs(snakemake(project, "-n", "the-other"))["curve"] == 4
    output = snakemake(project)
    assert "Figures: figures/*.png" in output
    for name in ("small", "the-other"):
        for ending in ("png", "pdf"):
            assert (project / "figures" / f"{name}.{ending}").stat().st_size > 1000
    assert "Nothing to be done" in snakemake(project, "-n")
    assert "Nothing to be done" in snakemake(project, "-n", "--config", "device=cpu"), "the same curves"
    first = results(project)
    assert not any(path.name.startswith(".") for path in (project / "results").rglob("*"))

    edit(
        project,
        "krum/aggregators.py",
        "return _sum_of_nearest(squared_distances, n - f - 2)\n\n\n@selection_rule(guarantee=_KRUM, selects",
        "return 1 * _sum_of_nearest(squared_distances, n - f - 2)\n\n\n@selection_rule(guarantee=_KRUM, selects",
    )
    assert jobs(snakemake(project, "-n"))["curve"] == 2, "krum without and with attack"
    edit(
        project,
        "krum/attacks.py",
        "return adversary.gaussian(standard_deviation)",
        "return adversary.gaussian(1 * standard_deviation)",
    )
    assert jobs(snakemake(project, "-n"))["curve"] == 5, "krum, and every other curve under gaussian"
    edit(project, "krum/plots.py", '"samples seen by all workers"', '"samples seen"')
    planned = jobs(snakemake(project, "-n"))
    assert planned["curve"] == 5 and planned["figure"] == 2
    edit(project, "krum/simulation.py", "SAMPLES_AT_ONCE = 512", "SAMPLES_AT_ONCE = 1024")
    assert jobs(snakemake(project, "-n"))["curve"] == 8
    snakemake(project)
    again = results(project)
    curves = [path for path in first if path.parent.name == "curves"]
    assert len(curves) == 8 and all(first[path] != again[path] for path in curves), "their code digest has changed"


def test_a_job_has_the_bytes_of_a_process_of_its_own(project):
    """Jobs are children of one warm process; the same command by itself gives the same file."""
    snakemake(project, "results/small.parquet")
    for cell in experiment.load(project / "experiments" / "small.yaml").cells:
        alone = project / "alone.parquet"
        command = [sys.executable, "-m", "krum", "curve", "--cell", cell.to_json(), "--output", str(alone)]
        subprocess.run(command, cwd=project, check=True, capture_output=True)
        assert alone.read_bytes() == (project / "results" / "curves" / f"{cell.slug}.parquet").read_bytes()


def test_a_living_run_keeps_its_lock(project):
    running = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1"],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    locks = project / ".snakemake" / "locks"
    while running.poll() is None and not (locks.is_dir() and list(locks.iterdir())):
        time.sleep(0.05)
    output = snakemake(project, "--cores", "1", check=False)
    assert "cannot be locked" in output
    assert running.wait() == 0


def test_bad_input_is_heard_before_any_job(project):
    (project / "data" / "spambase.data").write_text("not spambase")
    output = snakemake(project, check=False)
    assert "spambase.data" in output and "expected sha256:ebec58" in output and "delete it" in output
    assert not list((project / "results").rglob("*.parquet"))
    assert "Traceback" not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_a_device_that_is_not_there_is_refused_before_anything_is_removed(project):
    target = "results/small.parquet"
    snakemake(project, target)
    before = results(project)
    (project / "krum" / "attacks.py").write_text((project / "krum" / "attacks.py").read_text() + "\nEDITED = 1\n")
    output = snakemake(project, target, "--config", "device=cuda", check=False)
    assert "error: config: device: cuda was asked for" in output and "Traceback" not in output
    assert results(project) == before


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
    names.add("llvmlite")  # numba's, of the one version that it takes
    own = {"krum", "benchmarks"} | {path.stem for path in (ROOT / "tests").glob("*.py")}
    assert {name for name in imported - own if name not in sys.stdlib_module_names} <= names


def test_readme_commands_exist():
    """Every make target, snakemake target and file that the README names is there."""
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(re.findall(r"^    .*$", text, re.MULTILINE)))) <= targets
    experiments = {path.stem for path in (ROOT / "experiments").glob("*.yaml")}
    for target in re.findall(r"snakemake (\w+)\b", text):
        assert target in experiments
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_sweep_is_planned_for_slurm_without_a_cluster():
    command = [
        "snakemake",
        "--profile",
        "profiles/slurm",
        "--configfile",
        "profiles/smoke.yaml",
        "--dry-run",
        "--forceall",
    ]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(
        [*command, "--", "figure4"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert jobs(done.stdout + done.stderr)["curve"] == 8
