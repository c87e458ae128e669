"""The process that forks the workflow's jobs: it must never show."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krum.suite import warm

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

WORKFLOW = """
import subprocess, sys
from krum.suite import warm
warm.start()
sys.exit(subprocess.run([sys.executable, "-m", "krum.suite.warm", *sys.argv[1:]]).returncode)
"""


def run(*arguments, **options):
    command = [sys.executable, "-c", WORKFLOW, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def children(parent):
    """The servers and forked jobs whose parent this is."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent and alive(int(path.name)):
                found.add(int(path.name))
        except OSError:
            pass
    return found


def alive(process):
    try:
        return b"krum.suite.warm\0--serve" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_output_and_exit_code_come_back():
    done = run("cells", "experiments/figure4.yaml")
    assert done.returncode == 0 and done.stdout.count("\n") == 8
    done = run("cells", "experiments/no-such.yaml")
    assert done.returncode == 1 and "no-such.yaml: cannot be read" in done.stderr and "Traceback" not in done.stderr
    done = run("no-such-command")
    assert done.returncode == 2 and "invalid choice" in done.stderr


def test_without_a_server_the_job_runs_here(monkeypatch, capsys):
    monkeypatch.setenv(warm.ADDRESS, f"{os.getsid(0)}:/no/such/socket")
    assert warm.main(["cells", str(ROOT / "experiments" / "figure4.yaml")]) == 0
    assert capsys.readouterr().out.count("\n") == 8


def test_another_session_does_not_use_it(monkeypatch, tmp_path):
    """A cluster's job inherits the environment, and must do its work where it was sent."""
    monkeypatch.setenv(warm.ADDRESS, f"{os.getsid(0) + 1}:{tmp_path}")
    assert warm.main(["cells", str(ROOT / "experiments" / "figure4.yaml")]) == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_workflow(how):
    text = "import time\nfrom krum.suite import warm\nwarm.start()\nprint('started', flush=True)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE) as workflow:
        assert workflow.stdout.readline() == b"started\n"
        wait_until(lambda: children(workflow.pid))
        (server,) = children(workflow.pid)
        workflow.send_signal(how)
    wait_until(lambda: not alive(server))


def test_a_killed_job_does_not_go_on(tmp_path):
    """Whoever waits for the job is killed: the child dies, and leaves nothing half-written."""
    cell = subprocess.run(
        [sys.executable, "-m", "krum", "cells", "experiments/figure4.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[0]
    cell = cell.replace('"rounds":500', '"rounds":1000000')
    text = (
        "import subprocess, sys, time\nfrom krum.suite import warm\nwarm.start()\n"
        "job = subprocess.Popen([sys.executable, '-m', 'krum.suite.warm', *sys.argv[1:]], stderr=subprocess.PIPE)\n"
        "job.stderr.read(1)\nprint(job.pid, flush=True)\njob.wait()\nprint('ended', flush=True)\ntime.sleep(60)"
    )
    output = tmp_path / "x.parquet"
    command = [sys.executable, "-c", text, "curve", "--cell", cell, "--output", str(output)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as workflow:
        job = int(workflow.stdout.readline())  # it has begun to show its progress
        (server,) = children(workflow.pid)
        (child,) = children(server)
        os.kill(job, signal.SIGKILL)
        assert workflow.stdout.readline() == b"ended\n"
        wait_until(lambda: not alive(child))
        workflow.kill()
    assert not output.exists()
