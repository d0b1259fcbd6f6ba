"""One run of one fault: jobs, a seeded random moment, the blow, and what came of it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tests.acceptance.box import Worker
from tests.chaos.stage import LOAD_SECONDS, Stage
from tests.chaos.trace import Trace

PROMPTS = tuple(f"what is to be said of number {number}" for number in range(48))
SHARD_SIZE = 8
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.002
# Where no moment is looked for: asking costs what the workers lack.
CALM_POLL_SECONDS = 0.05
LOADED = re.compile(r" model_loaded .*? seconds=([\d.]+)")
IMPORTED = re.compile(r" engine_imported .*?seconds=([\d.]+)")
ENDED = ("completed", "failed", "cancelled")


@dataclass(kw_only=True)
class Job:
    """A job of the run, and how it is to end.

    Attributes:
        arguments: What else `submit` was told.
        failing: Prompts that must end with an error, and its code.
        status: How the job must end.
    """

    id: str
    model: str
    prompts: Sequence[str]
    arguments: Sequence[str] = ()
    failing: dict[int, str] = field(default_factory=dict)
    status: str = "completed"


class Run:
    """What a fault is given to play with.

    Attributes:
        allowance_seconds: What recovery may take beside a lease and a sweep:
            the start of a worker that had to be started.
        slowness: How many times slower than the fastest of its kind the slowest
            command was, which tells how busy the machine is.
        strikes: How many blows there were that may cost what a process held.
        affected: The prompts whose next beginning ends the recovery; None when
            nothing had to recover.
    """

    def __init__(self, stage: Stage, random: Random, number: int) -> None:
        self.stage = stage
        self.random = random
        self.number = number
        self.trace = Trace(stage.trace_file)
        self.jobs: list[Job] = []
        self._log_starts = {
            worker.log_file: worker.log_file.stat().st_size for worker in stage.box.workers
        }
        self.allowance_seconds = 0.0
        self.slowness = 1.0
        self.strikes = 0
        self.struck_at = 0.0
        self.struck_child: int | None = None
        self.affected: frozenset[str] | None = None
        self.problems: list[str] = []

    # --- jobs ---

    def submit(
        self,
        model: str = "steady",
        prompts: Sequence[str] = PROMPTS,
        *arguments: str,
        shard_size: int = SHARD_SIZE,
    ) -> Job:
        """Submit a job with the real command."""
        order = self.submit_command(model, prompts, *arguments, shard_size=shard_size)
        job_id = self._timed(*order).strip()
        return self.expect(Job(id=job_id, model=model, prompts=prompts, arguments=arguments))

    def submit_command(
        self, model: str, prompts: Sequence[str], *arguments: str, shard_size: int = SHARD_SIZE
    ) -> list[str]:
        file = self.stage.prompt_file(prompts)
        return ["submit", file, "--model", model, "--shard-size", str(shard_size), *arguments]

    def expect(self, job: Job) -> Job:
        """Have the job checked at the run's end."""
        self.jobs.append(job)
        return job

    def at_once(self, *commands: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
        """Run several commands side by side to their ends."""
        processes = [self.stage.box.start(*command) for command in commands]
        done = []
        for process in processes:
            output, notes = process.communicate(timeout=PATIENCE_SECONDS)
            done.append(
                subprocess.CompletedProcess(process.args, process.returncode, output, notes)
            )
        return done

    # --- moments ---

    def wait_until_some_are_begun(self, job: Job, most_share: float = 0.8) -> None:
        """Wait for a random number of the job's prompts to be begun, and a little longer."""
        count = self.random.randrange(1, max(2, int(len(job.prompts) * most_share)))
        self.wait_until(lambda: self.trace.count() >= count, unless=lambda: self.has_ended(job))
        self.pause(0.05)

    def wait_until_loading(self) -> Job:
        """Submit a job whose model is not loaded, and wait for a moment of its loading."""
        before = self.logged(" model_loading ")
        # One of two, so that the last run's is not the one in memory.
        job = self.submit(f"loads-{'ab'[self.number % 2]}")
        self.wait_until(lambda: self.logged(" model_loading ") > before)
        self.pause(LOAD_SECONDS)
        return job

    def pause(self, most_seconds: float) -> None:
        time.sleep(self.random.uniform(0, most_seconds))

    def wait_seconds(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait_until(
        self,
        condition: Callable[[], bool],
        *,
        unless: Callable[[], bool] = lambda: False,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Wait for a condition, no longer than the run's patience.

        Args:
            condition: Asked often.
            unless: What makes waiting useless, which is asked now and then.
            poll_seconds: Between two times that the condition is asked.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        ask_at = 0.0
        while not condition() and (now := time.monotonic()) < deadline:
            if now >= ask_at:
                if unless():
                    return
                ask_at = now + CALM_POLL_SECONDS
            time.sleep(poll_seconds)

    def has_ended(self, job: Job) -> bool:
        return self.stage.ledger.job_status(job.id) in ENDED

    def wait_for_end(self, job: Job) -> None:
        """Wait until the job has ended, or note that it did not."""
        self.wait_until(lambda: self.has_ended(job), poll_seconds=CALM_POLL_SECONDS)
        if not self.has_ended(job):
            status = self.stage.ledger.job_status(job.id)
            self.problems.append(f"job {job.id} is {status} after {PATIENCE_SECONDS:g} s")

    # --- blows ---

    def strike(self, job: Job, stopped: str = "running", *, child: int | None = None) -> None:
        """Say that the blow falls now.

        Args:
            job: The one whose recovery is timed.
            stopped: What the blow stops: the shards that are "running", the
                messages of those "queued", or "all" there is.
            child: The process with the model that is struck, if one is. What
                it still begins is no recovery.
        """
        self.strikes += 1
        self._time_recovery(job, stopped, child)

    def mended(self, job: Job) -> None:
        """Say that the fault is over now: recovery is timed from here."""
        self._time_recovery(job, "all", None)

    def holder(self, job: Job) -> Worker:
        """A worker that holds a shard of the job at this moment; any if the job has ended."""
        workers = self.stage.workers
        while not self.has_ended(job):
            held = self.stage.ledger.holders(job.id)
            if holding := [worker for worker in workers if worker.process.pid in held]:
                return self.random.choice(holding)
            time.sleep(5 * POLL_SECONDS)
        return self.random.choice(workers)

    def start_worker(self) -> None:
        """Start a worker in the place of one that is gone."""
        self.allowance_seconds += self.stage.start_worker()

    def _time_recovery(self, job: Job, stopped: str, child: int | None) -> None:
        left = self.stage.ledger.unfinished(job.id, child)
        indices = {
            "running": left.running,
            "queued": left.queued,
            "all": left.running | left.queued,
        }[stopped]
        self.affected = frozenset(job.prompts[index] for index in indices)
        self.struck_child = child
        self.struck_at = time.monotonic()

    # --- afterwards ---

    def recovery_seconds(self) -> float | None:
        """From the blow to the first prompt begun of those it stopped."""
        if not self.affected:
            return None
        moments = [
            begun.at
            for begun in self.trace.read()
            if begun.at > self.struck_at
            and begun.process != self.struck_child
            and begun.prompt in self.affected
        ]
        return min(moments) - self.struck_at if moments else None

    def repeated_prompts(self) -> int:
        """How many times a prompt was begun that had been begun before."""
        begun = [each.prompt for each in self.trace.read()]
        return len(begun) - len(set(begun))

    def results(self, job: Job) -> list[dict[str, object]]:
        output = self._timed("results", job.id)
        return [json.loads(line) for line in output.splitlines()]

    def _timed(self, *command: str) -> str:
        """What a command prints, its time held against those of its kind."""
        began = time.monotonic()
        output = self.stage.box.run(*command).stdout
        slowness = self.stage.pace.slowness(command[0], time.monotonic() - began)
        self.slowness = max(self.slowness, slowness)
        return output

    def last_load_seconds(self) -> float:
        """How long a worker took for the last model that was loaded."""
        return self._last(LOADED)

    def last_import_seconds(self) -> float:
        """How long the last child took to import the engine, before it claimed anything."""
        return self._last(IMPORTED)

    def logged(self, event: str) -> int:
        """How often the workers have said so in this run, the dead ones too."""
        return sum(log.count(event) for log in self._logs())

    def _last(self, seconds: re.Pattern[str]) -> float:
        found = seconds.findall("".join(self._logs()))
        return float(found[-1]) if found else 0.0

    def _logs(self) -> Iterator[str]:
        for worker in self.stage.box.workers:
            with worker.log_file.open("rb") as file:
                file.seek(self._log_starts.get(worker.log_file, 0))
                yield file.read().decode(errors="replace")
