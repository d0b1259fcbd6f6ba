"""A box as a user has it: a state directory, the real commands, real worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

TGP_JOBS = Path(sys.executable).parent / "tgp-jobs"
PATIENCE_SECONDS = 120.0


def wait_until(condition: Callable[[], Any], what: str, patience: float = PATIENCE_SECONDS) -> Any:
    """The condition's value once it is true.

    Raises:
        AssertionError: It did not become true in time.
    """
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {patience:g} s for {what}"
        time.sleep(0.05)
    return value


class Worker:
    """A real `tgp-jobs worker`, with its log in a file."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log_file = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for(self, event: str, count: int = 1) -> None:
        """Wait until the log has a line with the event."""
        wait_until(
            lambda: self.log.count(event) >= count or self.process.poll() is not None,
            f"{event} in the worker's log",
        )
        assert self.log.count(event) >= count, f"no {event} in:\n{self.log}"

    @property
    def child(self) -> int:
        """The process that holds the model."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text().split():
            if b"redis-server" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return int(pid)
        raise AssertionError("the worker has no child")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Box:
    """One state directory; everything started here is ended by `close`."""

    def __init__(self, home: Path, settings: dict[str, str] | None = None) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TGP_")},
            "TGP_HOME": str(home),
            # Fast recovery, so that a fault costs a test seconds.
            "TGP_LEASE_SECONDS": "3",
            "TGP_SWEEP_SECONDS": "1",
            # Of the null engine, so that a shard takes more than one micro-batch.
            "TGP_MICRO_BATCH_ROWS": "16",
            "HF_HUB_OFFLINE": "1",
            # Several processes of two threads each would fight for a small box.
            "OMP_NUM_THREADS": "1",
            **(settings or {}),
        }
        self.workers: list[Worker] = []

    def run(
        self, *arguments: str, exit_code: int | None = 0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; it must exit as expected."""
        done = subprocess.run(
            [str(TGP_JOBS), *arguments],
            env=self.environment,
            text=True,
            capture_output=True,
            input=stdin,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        if exit_code is not None:
            logs = "\n".join(worker.log[-3000:] for worker in self.workers)
            assert done.returncode == exit_code, f"{done.stdout}\n{done.stderr}\n{logs}"
        return done

    def start(self, *arguments: str) -> Process:
        """Start a command and go on."""
        return subprocess.Popen(
            [str(TGP_JOBS), *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def worker(self, *arguments: str, wait: bool = True) -> Worker:
        log = self.home / f"worker-{len(self.workers)}.log"
        worker = Worker([str(TGP_JOBS), "worker", *arguments], self.environment, log)
        self.workers.append(worker)
        if wait:
            worker.wait_for("worker_ready")
        return worker

    def prompts(self, prompts: Sequence[str | dict[str, Any]], name: str = "p.jsonl") -> str:
        """Write a prompt file and return its path."""
        path = self.home / name
        lines = [{"prompt": each} if isinstance(each, str) else each for each in prompts]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(path)

    def catalogue(self, text: str) -> None:
        (self.home / "catalogue.toml").write_text(text)

    def submit(self, file: str, model: str, *arguments: str) -> str:
        """Submit a file and return the job's id."""
        return self.run("submit", file, "--model", model, *arguments).stdout.strip()

    def status(self, job_id: str) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run("status", job_id, "--json").stdout)
        return status

    def results(self, job_id: str, *arguments: str) -> list[dict[str, Any]]:
        output = self.run("results", job_id, *arguments).stdout
        return [json.loads(line) for line in output.splitlines()]

    def wait_for_end(self, job_id: str) -> dict[str, Any]:
        """The job's status once it has ended."""
        try:
            done = self.run("status", job_id, "--watch", "--json", exit_code=None)
        except subprocess.TimeoutExpired:
            logs = "\n".join(worker.log[-5000:] for worker in self.workers)
            raise AssertionError(f"no end of {job_id}: {self.status(job_id)}\n{logs}") from None
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def close(self) -> None:
        # Without a word: an end in good order takes seconds and is not what is tested.
        for worker in self.workers:
            if worker.process.poll() is None:
                with suppress(AssertionError, OSError):
                    os.kill(worker.child, signal.SIGKILL)
                worker.kill()
        self._end_redis()

    def _end_redis(self) -> None:
        # It outlives a worker that was killed, so that the next one finds its queue.
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"redis-server" in command and str(self.home).encode() in command:
                os.kill(int(folder.name), signal.SIGKILL)


Process = subprocess.Popen[str]
