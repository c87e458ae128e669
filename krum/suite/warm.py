"""Jobs without the wait: a process that has imported everything forks one child per job of a workflow.

Importing torch and reading the data take longer than many a training run. The workflow starts one server on its own
machine; a job of it (`python -m krum.suite.warm curve ...`) hands its arguments, output streams and folder over and
waits for the exit code. A forked child starts from the same state as a new process, and computes the same bytes.
Wherever there is no server, on another machine of a cluster or where processes cannot fork, the job runs by itself.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

ADDRESS = "KRUM_WARM"  # environment variable: the session that may use the server, and its socket


def start() -> None:
    """Start the server for the jobs of this process's session; it ends with this process, however that ends."""
    if sys.platform != "linux" or "--mode" in sys.argv:  # elsewhere, forking after an import is not safe
        return
    path = str(Path(tempfile.mkdtemp(prefix="krum-")) / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(64)
        number = listening.fileno()
        command = [sys.executable, "-m", "krum.suite.warm", "--serve", str(number), path]
        _SERVERS.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[number]))
    os.environ[ADDRESS] = f"{os.getsid(0)}:{path}"


_SERVERS: list[subprocess.Popen] = []  # each notices by its standard input that this process has ended


def main(argv: list[str]) -> int:
    """Run a command of `python -m krum` in a child of the server, or here where there is none."""
    session, _, path = os.environ.get(ADDRESS, "").partition(":")
    if path and session == str(os.getsid(0)):
        with socket.socket(socket.AF_UNIX) as server:
            try:
                server.connect(path)
                job = json.dumps({"argv": argv, "folder": str(Path.cwd())}).encode()
                socket.send_fds(server, [len(job).to_bytes(4, "big")], [1, 2])
                server.sendall(job)
            except OSError:
                pass  # gone, or never there
            else:
                try:
                    code = server.recv(16)
                except ConnectionError:
                    code = b""
                except KeyboardInterrupt:
                    return 130
                if not code:
                    print("error: the process that did the work was killed; is there enough memory?", file=sys.stderr)
                return int(code or b"1")
    from krum.__main__ import main

    return main(argv)


def serve(listening: socket.socket, path: Path) -> None:
    """Fork a child for every job until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a Ctrl-C, the workflow and the waiting jobs hear, and end this
    threading.Thread(target=_end_with_the_workflow, args=(path,), daemon=True).start()

    from matplotlib.backends import backend_agg, backend_pdf  # noqa: F401  what jobs import, as all of these

    from krum.__main__ import main
    from krum.simulation import datasets
    from krum.suite import claims, report  # noqa: F401

    _do_first_things()
    while True:
        connection, _ = listening.accept()
        datasets.keep_in_memory()
        while _reaped():
            pass
        if os.fork() == 0:
            listening.close()
            _run(connection, main)
        connection.close()


def _do_first_things() -> None:
    """What every process does once, and what would cost each child a second: a kernel, and digests of the code."""
    import torch

    from krum.rules import kernels
    from krum.suite import provenance

    kernels.products([torch.zeros(1, 1)])
    for name in {*provenance.ENGINE, *provenance.AGGREGATION}:
        provenance.module_digest(name)


def _run(connection: socket.socket, main: Callable[[list[str]], int]) -> None:
    """Be the job: its streams, its folder, its exit code; die with the process that asked."""
    code = 1
    try:
        header, streams, _, _ = socket.recv_fds(connection, 4, 2)
        job = b""
        while len(job) < int.from_bytes(header, "big"):
            job += connection.recv(65536)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()
        request = json.loads(job)
        os.chdir(request["folder"])
        code = main(request["argv"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            connection.sendall(str(code).encode())
        finally:
            os._exit(code)


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def _end_with_the_workflow(path: Path) -> None:
    sys.stdin.buffer.read()
    path.unlink(missing_ok=True)
    path.parent.rmdir()
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(socket.socket(fileno=int(sys.argv[2])), Path(sys.argv[3]))
    sys.exit(main(sys.argv[1:]))
