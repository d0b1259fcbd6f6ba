"""The box of a stage: its commands and workers are forks of the fork server."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from tests.acceptance.box import PATIENCE_SECONDS, Box, Worker
from tests.chaos.forked import ForkedProcess, Forks


class ForkedWorker(Worker):
    """A worker of the fork server."""

    def __init__(self, process: ForkedProcess, log: Path) -> None:
        self.log_file = log
        self.process = cast("subprocess.Popen[bytes]", process)


class TracedBox(Box):
    """A box whose workers write a trace, and whose logs do not lie on its own disk."""

    def __init__(
        self,
        home: Path,
        folder: Path,
        settings: dict[str, str],
        forks: Forks,
        models: Sequence[str],
    ) -> None:
        super().__init__(home, settings)
        self._folder = folder
        self._forks = forks
        self._models = models

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        name = self._folder / f"command-{time.monotonic_ns()}"
        output, notes = name.with_suffix(".out"), name.with_suffix(".err")
        forked = self._forks.start(arguments, self.environment, output=output, notes=notes)
        return cast("subprocess.Popen[str]", forked)

    def run(
        self, *arguments: str, exit_code: int | None = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert stdin is None, "the fork server gives its forks no input"
        process = self.start(*arguments)
        output, notes = process.communicate(timeout=PATIENCE_SECONDS)
        if exit_code is not None:
            logs = "\n".join(worker.log[-3000:] for worker in self.workers)
            assert process.returncode == exit_code, f"{output}\n{notes}\n{logs}"
        return subprocess.CompletedProcess(process.args, process.returncode, output, notes)

    def traced_worker(self, clock_shift_seconds: float = 0.0) -> Worker:
        """Start a worker and wait until it is ready."""
        arguments = ["worker", *(word for model in self._models for word in ("--model", model))]
        log = self._folder / f"worker-{len(self.workers)}.log"
        if clock_shift_seconds:
            # Not a fork: its modules must not have taken the true clock's functions.
            command = [sys.executable, "-m", "tests.chaos.traced_worker", *arguments]
            shift = str(clock_shift_seconds)
            worker = Worker(command, self.environment | {"CHAOS_CLOCK_SHIFT_SECONDS": shift}, log)
        else:
            forked = self._forks.start(
                arguments, self.environment, output=log, notes=log, traced=True
            )
            worker = ForkedWorker(forked, log)
        self.workers.append(worker)
        worker.wait_for("worker_ready")
        return worker
