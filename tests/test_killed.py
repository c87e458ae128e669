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

import krum.__main__ as cli
from krum.errors import InputError
from krum.suite import planning

SMOKE = ("--configfile", "profiles/smoke.yaml")


def timeless():
    """The targets of the smoke sweep whose bytes can be the same: not what shows measured times."""
    plan = planning.plan(ROOT, {})
    specs = plan.experiments
    return [name for name in plan.names(review=False) if not any(probe.exclusive for probe in specs[name].probes)]


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
def test_killed_at_random_moments_it_ends_in_the_same_bytes(project, finished, torture, count):
    """On one core instead of two, the last curve first, and with OpenMP told to use two threads."""
    kills, expected, seconds = 2, results(finished, "figures"), float((finished / "seconds").read_text())
    last = [path for path in expected if path.parent.name == "curves"][-1]
    options = ["--cores", "1", "--prioritize", str(last)]
    if torture:  # the smoke sweep
        kills, options = 20, ["--cores", "2", *SMOKE, "--", *timeless()]
        shutil.rmtree(project / "experiments")
        for folder in ("experiments", "data"):
            shutil.copytree(ROOT / folder, project / folder, dirs_exist_ok=True)
        undisturbed, start = project.with_name("undisturbed"), time.monotonic()
        shutil.copytree(project, undisturbed)
        snakemake(undisturbed, *options)
        expected, seconds = results(undisturbed, "figures"), time.monotonic() - start
    command = [sys.executable, "-m", "snakemake", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    survived, history = 0, []
    while survived < kills:
        running = subprocess.Popen(command, cwd=project, env=environment, start_new_session=True, **silent)
        delay = seconds * random.uniform(*((0.02, 0.1) if torture else (0.3, 0.7)))
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
        for path, content in results(project, "figures").items():
            assert content == expected[path], f"{path} is not what it should be, after {history}"
        if running.returncode == 0:  # done before its time: from the beginning
            for folder in ("results", "figures", ".snakemake"):
                shutil.rmtree(project / folder)
    subprocess.run(command, cwd=project, env=environment, check=True, **silent)
    assert results(project, "figures") == expected
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
        if folder not in mounted:
            mounted.append(folder)

    yield at
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(project, finished, mount):
    """Jobs that find no room say so in a line; what was finished stays, and the next run goes on from there."""
    target = "results/the-other.parquet"
    mount(project / "results", "size=64k")
    output = snakemake(project, target, check=False)
    assert "cannot be written (No space left on device); free or unlock its folder" in output
    assert "Traceback" not in output
    expected = results(finished)
    assert results(project).items() <= expected.items(), "nothing half-written appears"
    mount(project / "results", "remount,size=8m")
    snakemake(project, target)
    assert target in map(str, results(project)) and results(project).items() <= expected.items()


def test_a_read_only_folder_is_refused_before_any_work(make_cell, tmp_path, monkeypatch, capsys, mount):
    monkeypatch.chdir(tmp_path)
    if os.geteuid() == 0:
        mount(tmp_path / "results", "size=1m,ro")
    else:
        (tmp_path / "results").mkdir(mode=0o555)
    plan = planning.Plan({}, [], "results", "figures", "auto", {})
    with pytest.raises(InputError, match=r"config: results/any.file: permission denied: "):
        planning.check_before_start(plan)
    assert cli.main(["curve", "--cell", make_cell().to_json(), "--output", "results/x.parquet"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: results/x.parquet: permission denied") and error.count("\n") == 1
