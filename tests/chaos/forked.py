"""Starts processes of the fork server, to be waited for and killed like any other."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTS_WITHIN_SECONDS = 60.0


class ForkedProcess:
    """The part of subprocess.Popen that the suite uses.

    Attributes:
        args: As they would stand on a command line.
        pid: Its process id.
        returncode: None as long as nobody has seen it end.
    """

    def __init__(
        self, connection: socket.socket, args: Sequence[str], output: Path, notes: Path
    ) -> None:
        self.args = list(args)
        self.returncode: int | None = None
        self._connection = connection
        self._output, self._notes = output, notes
        self.pid = self._number()

    def poll(self) -> int | None:
        if self.returncode is None:
            self._wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._wait(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; what it printed and what it noted."""
        self.wait(timeout)
        return self._output.read_text(), self._notes.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout: float | None) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        if poll.poll(None if timeout is None else timeout * 1000):
            self.returncode = self._number()
            self._connection.close()

    def _number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            byte = self._connection.recv(1)
            assert byte, "the fork server is gone"
            line += byte
        return int(line)


class Forks:
    """The fork server, as its client sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        output: Path,
        notes: Path,
        traced: bool = False,
    ) -> ForkedProcess:
        """Start `tgp-jobs` with these arguments.

        Args:
            arguments: What follows its name.
            environment: All of its environment.
            output: The file that what it prints is appended to.
            notes: The same for its standard error.
            traced: Whether it is the worker that writes a trace.
        """
        for file in (output, notes):
            file.touch()
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._path))
        order = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "output": str(output),
            "notes": str(notes),
            "traced": traced,
        }
        connection.sendall(json.dumps(order).encode() + b"\n")
        return ForkedProcess(connection, ("tgp-jobs", *arguments), output, notes)


@contextmanager
def fork_server() -> Iterator[Forks]:
    """A running fork server, ended with all it forked."""
    # A short path, for a socket.
    with tempfile.TemporaryDirectory(prefix="tgp-forks-") as folder:
        path = Path(folder) / "f.sock"
        command = [sys.executable, "-m", "tests.chaos.fork_server", str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as process:
            deadline = time.monotonic() + STARTS_WITHIN_SECONDS
            while not path.exists():
                assert process.poll() is None, "the fork server did not start"
                assert time.monotonic() < deadline, "the fork server does not listen"
                time.sleep(0.02)
            # Its standard input ends with the block, and it with that.
            yield Forks(path)
