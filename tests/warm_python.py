"""A Python that has imported the stack: a server that forks for each start, as importing takes longer than what most
processes of the tests do.

`executable` makes a file to be started in place of `sys.executable`. It hands its arguments, environment, folder and
standard streams to the server, passes signals on, and ends as the fork does; where it is killed, so is the fork.
"""

import faulthandler
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

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


def executable(folder: Path) -> tuple[Path, subprocess.Popen]:
    """The file to start, and the server, which ends when its standard input is closed."""
    address = str(folder / "socket")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, __file__, address], env=os.environ | {"PYTHONPATH": path}, stdin=subprocess.PIPE
    )
    while not os.path.exists(address):  # a start that comes before the imports are done waits for them
        assert server.poll() is None
        select.select([], [], [], 0.01)
    client = folder / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=address))
    client.chmod(0o755)
    return client, server


def serve(address: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    for name in MODULES:
        importlib.import_module(name)
    for module in ("data.prepare.dataset_picture", "train.outputs.plots"):  # as in the tests themselves
        importlib.import_module(f"flip_ctr.{module}").pyplot = lambda: None
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        while reaped():
            pass
        if sys.stdin in ready:  # closed
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return attend(connection)
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
        return run(task, streams)
    connection.sendall(f"{fork}\n".encode())
    ended = os.pidfd_open(fork)
    ready, _, _ = select.select([connection, ended], [], [])
    if ended not in ready:
        os.kill(fork, signal.SIGKILL)
    _, status = os.waitpid(fork, 0)
    if ended in ready:
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def run(task: bytes, streams: list[int]) -> None:
    """What `python ARGUMENTS` does."""
    import json

    arguments, environment, folder = json.loads(task)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if "PYTHONFAULTHANDLER" in environment:
        faulthandler.enable()
    arguments = arguments[arguments[0] == "-u" :]
    sys.stdout.reconfigure(write_through=True)
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


if __name__ == "__main__":
    serve(sys.argv[1])
