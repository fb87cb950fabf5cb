"""A Python that has imported the stack: a fork of this process that forks again for each start, as importing takes
longer than what most processes of the tests do.

`Warm.executable` is a file to be started in place of `sys.executable`. It hands its arguments, environment, folder and
standard streams to the server, passes signals on, and ends as the fork does; where it is killed, so is the fork.
"""

import atexit
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

MODULES = ("tiny", "step_child", "accelerate.commands.launch", "torch.distributed.run")

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
task = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(task).to_bytes(8, "big")], [0, 1, 2])
server.sendall(task)
answers = server.makefile()
fork = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
code = int(answers.readline())
if code < 0:  # it ended by a signal
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


WARM: "Warm | None" = None  # of this process; `shared_fixtures` makes it


class Warm:
    """Forks the server. To be made before this process has threads, which a fork would not have.

    Args:
        modules: what the server imports.
        prepare: what it does then, before it forks for others.
    """

    def __init__(self, modules: Sequence[str] = MODULES, prepare: Callable[[], None] | None = None):
        for name in modules:
            importlib.import_module(name)
        get_checkpoint_conversion_mapping("bert")  # the first call compiles a thousand patterns
        self.folder = Path(tempfile.mkdtemp(prefix="warm-"))
        self.address = str(self.folder / "socket")
        ends, self.open = os.pipe()  # the server ends when this is closed
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.address)
        listener.listen()
        self.server = os.fork()
        if self.server == 0:
            os.close(self.open)
            atexit._clear()  # what this process does at its end
            (prepare or without_pictures)()
            serve(listener, ends)
            os._exit(0)
        os.close(ends)
        listener.close()
        self.executable = self.folder / "python"
        self.executable.write_text(CLIENT.format(python=sys.executable, address=self.address))
        self.executable.chmod(0o755)

    def close(self) -> None:
        os.close(self.open)
        os.waitpid(self.server, 0)
        shutil.rmtree(self.folder)


class Process:
    """`python ARGUMENTS` in a fork of the server, and its process number.

    Args:
        arguments: behind `python`.
        output: file for what it writes to its standard streams; nowhere when not given.
        warm: the server; the tests' own when not given.
        environment: variables that differ from this process's.
    """

    def __init__(
        self,
        arguments: list[str],
        output: str | Path = os.devnull,
        warm: Warm | None = None,
        environment: dict[str, str] | None = None,
    ):
        server = socket.socket(socket.AF_UNIX)
        server.connect((warm or WARM).address)
        task = json.dumps([arguments, dict(os.environ) | (environment or {}), os.getcwd()]).encode()
        with open(os.devnull) as nothing, open(output, "a") as said:
            streams = [nothing.fileno(), said.fileno(), said.fileno()]
            socket.send_fds(server, [len(task).to_bytes(8, "big")], streams)
        server.sendall(task)
        self.answers, self.exitcode = server.makefile(), None
        self.pid = int(self.answers.readline())

    def is_alive(self) -> bool:
        self.join(0)
        return self.exitcode is None

    def join(self, seconds: float | None = None) -> None:
        if self.exitcode is None and select.select([self.answers], [], [], seconds)[0]:
            self.exitcode = int(self.answers.readline())


def without_pictures() -> None:
    """As in the tests themselves."""
    for module in ("data.prepare.dataset_picture", "train.outputs.plots"):
        importlib.import_module(f"flip_ctr.{module}").pyplot = lambda: None


def serve(listener: socket.socket, ends: int) -> None:
    gc.freeze()  # no collection of a fork goes through, and so copies, what is imported here
    gc.enable()
    while True:
        ready, _, _ = select.select([listener, ends], [], [])
        while reaped():
            pass
        if ends in ready:  # closed
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            attend(connection)
        connection.close()


def reaped() -> bool:
    """Whether a fork has ended."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def attend(connection: socket.socket) -> None:
    """Forks once more, and tells the client how that process ended; without a client it is killed."""
    length, streams, _, _ = socket.recv_fds(connection, 8, 3)
    size, task = int.from_bytes(length, "big"), b""
    while len(task) < size:
        task += connection.recv(size - len(task))
    fork = os.fork()
    if fork == 0:
        connection.close()
        os._exit(ended(task, streams))
    connection.sendall(f"{fork}\n".encode())
    ends = os.pidfd_open(fork)
    ready, _, _ = select.select([connection, ends], [], [])
    if ends not in ready:
        os.kill(fork, signal.SIGKILL)
    _, status = os.waitpid(fork, 0)
    if ends in ready:
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def ended(task: bytes, streams: list[int]) -> int:
    """Runs the task as an interpreter does, to its end; its exit status."""
    code = 0
    try:
        run(task, streams)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def run(task: bytes, streams: list[int]) -> None:
    """What `python ARGUMENTS` does."""
    arguments, environment, folder = json.loads(task)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # pytest's catch what is printed
    sys.stdout.reconfigure(write_through=True)
    sys.stderr.reconfigure(write_through=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    faulthandler.disable()
    if "PYTHONFAULTHANDLER" in environment:
        faulthandler.enable()
    arguments = arguments[arguments[0] == "-u" :]
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [path for path in paths if path not in sys.path]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
