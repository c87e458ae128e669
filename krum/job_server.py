"""Jobs without the wait for imports: a process that has imported everything forks one child per job of a workflow.

A job, `python -P krum/job_server.py curve ...`, hands its arguments and output streams over and waits for the
exit code. A forked child starts from the same state as a new process, and computes the same bytes. Where there is no
server, as on another machine of a cluster or in another session of processes, the job runs by itself.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

SOCKET = Path(".snakemake") / f"job-server-{os.getsid(0)}"  # of this session of processes
SERVERS: list[subprocess.Popen] = []  # each ends when its standard input does, with this process


def start() -> None:
    """Start a server for the jobs of this process's session; it ends with this process, however that ends."""
    SOCKET.unlink(missing_ok=True)
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(SOCKET))  # where the file system knows sockets
        listening.listen(64)
        number = listening.fileno()
        command = [sys.executable, "-c", f"from krum import job_server; job_server.serve({number})"]
        SERVERS.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number]))


def serve(number: int) -> None:
    """Fork a child for every job that comes through the open socket of that number, until standard input ends."""
    from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401  what jobs import, as those below

    from krum.__main__ import main
    from krum.simulation import datasets

    listening = socket.socket(fileno=number)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a child has ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C, the workflow and the waiting jobs hear, and end this
    while sys.stdin not in select.select([listening, sys.stdin], [], [])[0]:
        connection, _ = listening.accept()
        datasets.keep_in_memory()
        if os.fork() == 0:
            listening.close()
            answer(connection, main)
        connection.close()
    SOCKET.unlink(missing_ok=True)


def answer(connection: socket.socket, main) -> None:
    """Be the child: do the job with its streams, and die with the process that waits for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(connection, 2**20, 2)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()
    try:
        code = main(json.loads(request))
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else sys.excepthook(*sys.exc_info()) or 1
    sys.stdout.flush()
    connection.sendall(str(code).encode())
    os._exit(0)


def run(arguments: list[str]) -> None:
    """Be a job: let a child of the server do it, or this process where there is no server or it dies."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.connect(str(SOCKET))
        socket.send_fds(server, [json.dumps(arguments).encode()], [1, 2])
        if code := server.recv(16):
            sys.exit(int(code))
    os.execv(sys.executable, [sys.executable, "-m", "krum", *arguments])


if __name__ == "__main__":
    run(sys.argv[1:])
