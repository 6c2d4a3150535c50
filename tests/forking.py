"""Programs that tests start, stop and kill, without the seconds that importing takes: forked from a process that has imported everything.

What is forked has arguments, streams and signals of its own, and knows nothing of the test's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SERVER = """
import json, os, signal, sys, traceback
import medssl, medssl.archive, medssl.cli, medssl.train.pretraining, medssl.volumes
from medssl.networks import as_spec
from medssl.plugins import Plugins
Plugins.load()
as_spec("UNet")

def run(order):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT, 0o600)
    for stream, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
        os.dup2(descriptor, stream)
    sys.argv = ["-c", *order["arguments"]]
    try:
        exec(compile(order["program"], "program", "exec"), {"__name__": "__main__"})
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        code = run(order)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
"""
COMMAND = "import sys; from medssl.cli import main; main(sys.argv[1:])"
"""The program `medssl`."""


@dataclass
class Program:
    """A program that was started: its exit code, negative where a signal killed it, and what it said on both streams."""

    pid: int
    _forks: Forks
    _said: Path

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._forks.ask({"wait": self.pid})

    @property
    def said(self) -> str:
        """What it has said so far."""
        return self._said.read_text(encoding="utf-8", errors="replace")


class Forks:
    """Forks programs; each is Python text that reads `sys.argv[1:]`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        command, environment = [sys.executable, "-c", _SERVER], {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n"

    def start(self, program: str, *arguments: object) -> Program:
        """Start it and go on."""
        said = Path(tempfile.mkstemp(dir=self._folder)[1])
        return Program(self.ask({"program": program, "arguments": list(map(str, arguments)), "said": str(said)}), self, said)

    def run(self, program: str, *arguments: object) -> tuple[int, str]:
        """Its exit code, and what it said."""
        started = self.start(program, *arguments)
        return started.wait(), started.said

    def ask(self, order: dict[str, object]) -> int:
        """One answer of the server."""
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    def close(self) -> None:
        """No more of them."""
        self._server.communicate()
