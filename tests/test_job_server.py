"""The process that forks the workflow's jobs: it must never show."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krum.suite import experiment

ROOT = Path(__file__).resolve().parent.parent
CLIENT = [sys.executable, "-P", "krum/job_server.py"]
FIGURE4 = "experiments/figure4.yaml"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

WORKFLOW = """
import subprocess, sys, time
from krum import job_server
job_server.start()
for line in sys.stdin:
    job = subprocess.Popen([sys.executable, "-P", "krum/job_server.py", *line.split()])
    print(job.pid, flush=True)
    print(job.wait(), flush=True)
"""


@pytest.fixture
def workflow(tmp_path):
    """A process with a server, which starts a job for every line that it reads: it says its process and exit code."""
    (ROOT / ".snakemake").mkdir(exist_ok=True)
    command = [sys.executable, "-c", WORKFLOW]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with (tmp_path / "errors").open("w") as errors:
        with subprocess.Popen(command, cwd=ROOT, **pipes, stderr=errors, start_new_session=True) as process:
            yield process
            process.kill()


def children(parent):
    """The servers and forked jobs whose parent this is."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent and alive(int(path.name)):
                found.append(int(path.name))
        except OSError:
            pass
    return found


def alive(process):
    try:
        return b"job_server.serve(" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_server_of_its_session_a_job_runs_by_itself():
    done = subprocess.run([*CLIENT, "cells", FIGURE4], cwd=ROOT, capture_output=True, start_new_session=True)
    assert done.returncode == 0 and done.stdout.count(b"\n") == 8


def test_output_and_exit_code_come_back_and_a_killed_job_does_not_go_on(workflow, tmp_path):
    """Whoever waits for a job is killed: the child dies, and leaves nothing half-written. So does the server."""
    errors, output = tmp_path / "errors", tmp_path / "x.parquet"
    wait_until(lambda: children(workflow.pid))
    for arguments, code, words in (
        (f"cells {FIGURE4}", 0, ""),
        ("cells no.yaml", 1, "no.yaml: cannot be"),
        ("no", 2, "No"),
    ):
        workflow.stdin.write(f"{arguments}\n")
        workflow.stdout.readline()  # the job's process
        while (line := workflow.stdout.readline()).startswith("{"):
            assert line.startswith('{"aggregator"')
        assert int(line) == code and words in errors.read_text()
    assert "Traceback" not in errors.read_text()
    before = errors.stat().st_size
    cell = experiment.load(ROOT / FIGURE4).cells[0].to_json().replace('"rounds":500', '"rounds":1000000')
    workflow.stdin.write(f"curve --cell {cell} --output {output}\n")
    job = int(workflow.stdout.readline())
    (server,) = children(workflow.pid)
    wait_until(lambda: errors.stat().st_size > before)  # it has begun to show its progress
    (child,) = children(server)
    os.kill(job, signal.SIGKILL)
    assert int(workflow.stdout.readline()) == -signal.SIGKILL
    wait_until(lambda: not alive(child))
    assert alive(server) and not output.exists()
    workflow.kill()
    wait_until(lambda: not alive(server))
