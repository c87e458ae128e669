"""Killed work, full disks and locked folders: nothing finished is lost, and nothing half-written is seen."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from small_project import ROOT, results, snakemake

from krum.suite import experiment, planning
from krum.suite.probes import PROBES

SMOKE = ("--configfile", "profiles/smoke.yaml")


def visible(project):
    """Every result and figure under its final name."""
    files = [path for folder in ("results", "figures") for path in (project / folder).rglob("*.*")]
    kept = (".parquet", ".png", ".pdf", ".html", ".md", ".json")
    return {
        path.relative_to(project): path.read_bytes()
        for path in files
        if path.suffix in kept and not path.name.startswith(".") and path.name != "README.md"
    }


def timeless():
    """The targets of the smoke sweep whose bytes can be the same: not what shows measured times."""
    plan = planning.plan(ROOT, {})
    return [
        name
        for name in plan.names(review=False)
        if not any(PROBES[probe.name].exclusive for probe in plan.experiments[name].probes)
    ]


def of_session(leader):
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().rpartition(")")
            if int(rest.split()[3]) == leader:
                found.append(int(name.split()[0]))
    return found


def kill(running, whom):
    """SIGKILL to the whole session, to snakemake alone, whose jobs then have no master, or to any of its processes."""
    if whom == "all":
        victims = of_session(running.pid)
    else:
        victims = [running.pid if whom == "snakemake" else random.choice(of_session(running.pid) or [running.pid])]
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_killed_at_random_moments_it_ends_in_the_same_bytes(project, tmp_path_factory, torture, count):
    kills, targets = (20, timeless()) if torture else (3, ())
    (project / "experiments" / "the-other.yaml").unlink()
    if torture:  # the smoke sweep
        shutil.rmtree(project / "experiments")
        shutil.copytree(ROOT / "experiments", project / "experiments")
        shutil.copytree(ROOT / "data", project / "data", dirs_exist_ok=True)
    undisturbed = tmp_path_factory.mktemp("undisturbed") / "project"
    shutil.copytree(project, undisturbed)
    start = time.monotonic()
    snakemake(undisturbed, *SMOKE, "--", *targets)
    seconds = time.monotonic() - start
    expected = visible(undisturbed)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *SMOKE, "--", *targets]
    survived, history = 0, []
    while survived < kills:
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = subprocess.Popen(command, cwd=project, start_new_session=True, **silent)
        delay = seconds * random.uniform(*((0.02, 0.1) if torture else (0.2, 0.7)))
        whom = random.choice(("all", "snakemake", "any"))
        history.append((round(delay, 2), whom))
        with suppress(subprocess.TimeoutExpired):
            running.wait(delay)
        if running.poll() is None:
            kill(running, whom)
            survived += 1
            with suppress(subprocess.TimeoutExpired):  # where another process was the victim, it goes on for a while
                running.wait(delay / 2)
            kill(running, "snakemake")
            running.wait()
        for path, content in visible(project).items():
            assert content == expected[path], f"{path} is not what it should be, after {history}"
        if running.returncode == 0:  # done before its time: from the beginning
            for folder in ("results", "figures", ".snakemake"):
                shutil.rmtree(project / folder)
    snakemake(project, *SMOKE, "--", *targets)
    assert visible(project) == expected
    count("kills survived", survived)


# --------------------------------------------------------------------------------------- full disks, locked folders


@pytest.fixture
def mount():
    """`mount(folder, options)`: a small file system in memory, where the system lets us."""
    mounted = []

    def at(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount")
        mounted.append(folder)

    yield at
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(project, mount):
    """Jobs that find no room say so in a line; what was finished stays, and the next run goes on from there."""
    mount(project / "results", "size=1m")
    (project / "experiments" / "small.yaml").unlink()
    first = next(iter(planning.plan(project, {}).cells))
    snakemake(project, f"results/curves/{first}.parquet")
    finished = results(project)
    ballast = project / "results" / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    output = snakemake(project, "results/the-other.parquet", check=False)
    assert "cannot be written (No space left on device); free or unlock its folder" in output
    assert "Traceback" not in output
    assert results(project) == finished, "nothing is lost, and nothing half-written appears"
    ballast.unlink()
    snakemake(project, "results/the-other.parquet")
    assert {path: content for path, content in results(project).items() if path in finished} == finished


def test_a_read_only_folder_is_refused_before_any_work(project, mount):
    (project / "results").mkdir()
    if os.geteuid() == 0:
        mount(project / "results", "size=1m,ro")
    else:
        (project / "results").chmod(0o555)
    output = snakemake(project, check=False)
    assert "permission denied: " in output and "Traceback" not in output
    assert not (project / "figures").exists()
    cell = experiment.load(project / "experiments" / "the-other.yaml").cells[0]
    command = [sys.executable, "-m", "krum", "curve", "--cell", cell.to_json(), "--output", "results/x.parquet"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "error: results/x.parquet: permission denied" in done.stderr
    assert done.stderr.count("\n") == 1
    if os.geteuid():
        (project / "results").chmod(0o755)
