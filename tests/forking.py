"""Programs that tests start, stop and kill, without the seconds that importing takes: forked from a process that has imported everything.

What is forked has arguments, environment, folder, streams and signals of its own, and knows nothing of the test's process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = "import sys; from medssl.cli import main; main(sys.argv[1:])"
"""The program `medssl`."""
_SERVER = f"""
import sys
sys.path[:] = [{str(Path(__file__).parent)!r}, *filter(None, sys.path)]
import medssl, medssl.archive, medssl.cli, medssl.train.pretraining, medssl.volumes
from medssl.networks import as_spec
from medssl.plugins import Plugins
Plugins.load()
as_spec("UNet")
from forking import serve
serve(sys.argv[1])
"""


def serve(place: str) -> None:
    """Fork a program for each that connects to the socket at `place`, until standard input is closed."""
    import select

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the programs
    print("ready", flush=True)
    while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork the program that is asked for; say its process, and once it has ended its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, streams, *_ = socket.recv_fds(connection, 1 << 16, 3)
    while not asked.endswith(b"\n"):
        asked += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        connection.close()
        code = _run(json.loads(asked), streams)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    for stream in (*streams, 0, 1, 2):
        os.close(stream)
    connection.sendall(f"{child}\n".encode())
    connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
    os._exit(0)


def _run(asked: dict[str, object], streams: list[int]) -> int:
    import traceback

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(str(asked["folder"]))
    os.environ.clear()
    os.environ.update(dict(asked["environ"]))  # type: ignore[call-overload]
    sys.argv = ["program", *asked["arguments"]]  # type: ignore[misc]
    try:
        exec(compile(str(asked["program"]), "program", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
        return 1
    return 0


class Program:
    """A program that was asked for: its process, and its exit code once it has ended."""

    def __init__(self, place: str, program: str, arguments: list[str], streams: tuple[int, int, int]) -> None:
        asked = {"program": program, "arguments": arguments, "folder": str(Path.cwd()), "environ": dict(os.environ)}
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(place)
        content = json.dumps(asked).encode() + b"\n"
        sent = socket.send_fds(self._connection, [content], streams)
        self._connection.sendall(content[sent:])
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())

    def wait(self) -> int:
        """Its exit code, negative where a signal killed it."""
        with self._connection:
            return int(self._answers.readline())


def forward(place: str) -> None:
    """What the program `medssl` in `Forks.folder` does: have it forked with its own arguments, and end as it does."""
    code = Program(place, COMMAND, sys.argv[1:], (0, 1, 2)).wait()
    sys.exit(code if code >= 0 else 128 - code)


class Forks:
    """Forks programs; each is Python text that reads `sys.argv[1:]`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """Has the program `medssl`, to be put into PATH."""
        self._place = str(folder / "socket")
        words = [sys.executable, "-c", _SERVER, self._place]
        self._server = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"
        here = str(Path(__file__).parent)
        medssl = folder / "medssl"
        medssl.write_text(
            f"#!{sys.executable} -SE\nimport sys\nsys.path.insert(0, {here!r})\nfrom forking import forward\nforward({self._place!r})\n"
        )
        medssl.chmod(0o700)

    def start(self, program: str, *arguments: object, said: int | None = None) -> Program:
        """Start it and go on; what it says on both streams goes into the file `said`, or nowhere."""
        with Path(os.devnull).open("r+b") as nothing:
            to = nothing.fileno() if said is None else said
            return Program(self._place, program, list(map(str, arguments)), (nothing.fileno(), to, to))

    def run(self, program: str, *arguments: object) -> tuple[int, str]:
        """Its exit code, and what it said."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
            code = self.start(program, *arguments, said=said.fileno()).wait()
            said.seek(0)
            return code, said.read()

    def close(self) -> None:
        """No more of them."""
        self._server.communicate()
