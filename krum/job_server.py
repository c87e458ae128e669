"""Jobs without the wait for imports: a process that has imported everything forks one child per job of a workflow.

A job, `python -P krum/job_server.py curve ...`, hands its folder, arguments and output streams over and waits for
the exit code. A forked child starts from the same state as a new process, and computes the same bytes. Where there is
no server, as on another machine of a cluster or in another session of processes, the job runs by itself.
"""

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

ADDRESS = f"KRUM_JOB_SERVER_{os.getsid(0)}" if hasattr(os, "getsid") else "KRUM_JOB_SERVER"  # environment variable
SERVERS: list[subprocess.Popen] = []  # each ends when its standard input does, with this process


def start() -> None:
    """Start a server for the jobs of this process's session; it ends with this process, however that ends."""
    path = Path(tempfile.mkdtemp(prefix="krum-")) / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen(64)
        command = [sys.executable, "-m", "krum.job_server", "--serve", str(listening.fileno()), str(path)]
        SERVERS.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listening.fileno()]))
    os.environ[ADDRESS] = str(path)


def serve(listening: socket.socket, path: Path) -> None:
    """Fork a child for every job until standard input ends."""
    from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401  what jobs import, as those below

    from krum.__main__ import main
    from krum.simulation import datasets

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C, the workflow and the waiting jobs hear, and end this
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        datasets.keep_in_memory()
        if os.fork() == 0:
            answer(connection, main)
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    shutil.rmtree(path.parent)


def answer(connection: socket.socket, main) -> None:
    """Be the child: do the job in its folder and with its streams, and die with the process that waits for it."""
    request, streams, _, _ = socket.recv_fds(connection, 2**20, 2)
    folder, arguments = json.loads(request)
    os.chdir(folder)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()
    try:
        code = main(arguments)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else sys.excepthook(*sys.exc_info()) or 1
    sys.stdout.flush()
    connection.sendall(str(code).encode())
    os._exit(0)


def run(arguments: list[str]) -> None:
    """Be a job: let a child of the server do it, or this process where there is no server or it dies."""
    with suppress(OSError, KeyError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(os.environ[ADDRESS])
        socket.send_fds(server, [json.dumps([str(Path.cwd()), arguments]).encode()], [1, 2])
        if code := server.recv(16):
            sys.exit(int(code))
    os.execv(sys.executable, [sys.executable, "-m", "krum", *arguments])


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[3]))
    else:
        run(sys.argv[1:])
