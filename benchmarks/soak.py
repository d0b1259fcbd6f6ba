"""One worker for a long time: does it leak, does it thrash, does anybody starve?

    python -m benchmarks.soak [--minutes 60] [--seed 0]

A real worker with its embedded Redis and SQLite, and the four small models.
Jobs of a random model, size and priority arrive at random. Printed at the end:
each process's memory, as the median of each quarter of the time and as the
slope over the second half with its standard error, file descriptors at the
start and the end, swaps of the model beside those that could not be avoided,
and the longest wait of a shard of each priority.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from math import inf, sqrt
from pathlib import Path
from random import Random
from statistics import linear_regression, median, pvariance

import psutil
from sqlalchemy import func, select

from jobs.database import Database
from jobs.dispatch import PRIORITY_NUMBERS
from jobs.models import jobs, shards
from tests.acceptance.box import Box, Worker
from tests.peak_memory import anonymous_bytes

MODELS = ("tiny-bloom", "tiny-gpt-neox", "tiny-cerebras", "tiny-flan")
SAMPLE_SECONDS = 5.0
SHARD_SIZE = 8
# Arrivals pause above this, so that what is measured is the worker and not a
# backlog that grows because the machine is too small for the arrivals.
MOST_WAITING_SHARDS = 12
STICKY_SECONDS = 60.0
LEAST_SAMPLES = 3
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A process at one moment; its memory is the anonymous one, in MiB.

    Pages of mapped files are not in it: how many of a library's pages are a
    process' own depends on who else has the library open.
    """

    seconds: float
    memory_mib: float
    descriptors: int


@dataclass(frozen=True, kw_only=True)
class RunShard:
    """A shard that has been started."""

    model: str
    priority: str
    created_at: datetime
    started_at: datetime

    @property
    def waited_seconds(self) -> float:
        return (self.started_at - self.created_at).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tgp-soak-") as folder:
        settings = {"TGP_SWEEP_SECONDS": "5", "TGP_STICKY_SECONDS": str(STICKY_SECONDS)}
        # The default, rather than the fault tests' few seconds.
        settings |= {"TGP_LEASE_SECONDS": "60"}
        box = Box(Path(folder), settings)
        try:
            soak(box, arguments.minutes * 60, Random(arguments.seed))
        finally:
            box.close()


def soak(box: Box, seconds: float, random: Random) -> None:
    worker = box.worker(*(part for model in MODELS for part in ("--model", model)))
    database = Database(f"sqlite:///{box.home / 'tgp-jobs.db'}", pooled=False)
    # Every model once, so that what it takes to hold them is there from the start.
    for model in MODELS:
        submit(box, model, 4, "normal")
    while waiting_shards(database):
        time.sleep(1)
    samples: dict[str, list[Sample]] = {"parent": [], "child": []}
    began = time.monotonic()
    next_job = began
    submitted = 0
    while (now := time.monotonic()) - began < seconds:
        if now >= next_job and waiting_shards(database) < MOST_WAITING_SHARDS:
            submit(box, random.choice(MODELS), random.randint(1, 40), priority(random))
            submitted += 1
            next_job = now + random.uniform(1.0, 12.0)
        take_samples(samples, worker, now - began)
        time.sleep(SAMPLE_SECONDS)
    while waiting_shards(database):
        time.sleep(1)
    started = run_shards(database)
    database.close()
    show(samples, started, submitted)


def priority(random: Random) -> str:
    return random.choices(("high", "normal", "low"), weights=(1, 4, 3))[0]


def submit(box: Box, model: str, prompts: int, level: str) -> None:
    path = box.prompts([f"the worker number {number} of {prompts} is" for number in range(prompts)])
    options = ("--priority", level, "--max-new-tokens", "16", "--shard-size", str(SHARD_SIZE))
    box.submit(path, model, *options)


def waiting_shards(database: Database) -> int:
    query = select(func.count()).where(shards.c.status.in_(("queued", "running")))
    with database.read() as connection:
        return int(connection.execute(query).scalar_one())


def take_samples(samples: dict[str, list[Sample]], worker: Worker, seconds: float) -> None:
    # A child that is being replaced is sampled the next time.
    with suppress(psutil.NoSuchProcess, OSError, RuntimeError, AssertionError):
        for name, process in (("parent", worker.process.pid), ("child", worker.child)):
            memory = anonymous_bytes(process) / MIB
            descriptors = psutil.Process(process).num_fds()
            samples[name].append(
                Sample(seconds=seconds, memory_mib=memory, descriptors=descriptors)
            )


def run_shards(database: Database) -> list[RunShard]:
    """Every shard in the order in which they were started."""
    columns = (jobs.c.model, jobs.c.priority, shards.c.created_at, shards.c.started_at)
    query = select(*columns).join(jobs).order_by(shards.c.started_at, shards.c.id)
    with database.read() as connection:
        return [
            RunShard(
                model=row.model,
                priority=row.priority,
                created_at=row.created_at,
                started_at=row.started_at,
            )
            for row in connection.execute(query)
        ]


def avoidable_swaps(started: Sequence[RunShard]) -> tuple[int, int]:
    """How often the model was swapped, and how often it need not have been.

    A swap could have been avoided if a shard of the model before, of no lower
    priority than the one that was taken, was waiting, and the model's time was
    not over.
    """
    swaps = avoidable = 0
    since = started[0].started_at
    for before, after in pairwise(started):
        if before.model == after.model:
            continue
        swaps += 1
        held_seconds = (after.started_at - since).total_seconds()
        since = after.started_at
        waiting = any(
            each.model == before.model
            and each.created_at < after.started_at < each.started_at
            and PRIORITY_NUMBERS[each.priority] <= PRIORITY_NUMBERS[after.priority]
            for each in started
        )
        avoidable += waiting and held_seconds < STICKY_SECONDS
    return swaps, avoidable


def slope_mib_per_hour(samples: Sequence[Sample]) -> tuple[float, float]:
    """The least-squares slope of the memory, and its standard error.

    A child's memory goes up and down by tens of MiB with the model it loads, so
    a slope below twice its error says nothing. The samples are not independent,
    so the true error is larger.
    """
    hours = [each.seconds / 3600 for each in samples]
    memory = [each.memory_mib for each in samples]
    if len(samples) < LEAST_SAMPLES:
        return 0.0, inf
    slope, start = linear_regression(hours, memory)
    residuals = (there - start - slope * then for then, there in zip(hours, memory, strict=True))
    variance = sum(each**2 for each in residuals) / (len(samples) - 2)
    return slope, sqrt(variance / (len(samples) * pvariance(hours)))


def medians_mib(samples: Sequence[Sample]) -> list[float]:
    """The median of the memory in each quarter of the samples."""
    size = -(-len(samples) // 4)
    quarters = [samples[first : first + size] for first in range(0, len(samples), size)]
    return [median(each.memory_mib for each in quarter) for quarter in quarters]


def most_descriptors(samples: Sequence[Sample]) -> int:
    return max(each.descriptors for each in samples)


def show(samples: dict[str, list[Sample]], started: Sequence[RunShard], submitted: int) -> None:
    print(f"{submitted} jobs, {len(started)} shards")
    for name, taken in samples.items():
        middle = len(taken) // 2
        first, half = taken[:middle], taken[middle:]
        slope, error = slope_mib_per_hour(half)
        medians = ", ".join(f"{each:.1f}" for each in medians_mib(taken))
        print(
            f"{name:7} memory {medians} MiB (medians of the quarters), at most "
            f"{max(each.memory_mib for each in taken):.1f}; over the second half "
            f"{slope:+.1f} +- {error:.1f} MiB an hour; file descriptors "
            f"{taken[0].descriptors} at the start, {taken[-1].descriptors} at the end, "
            f"at most {most_descriptors(first)} and {most_descriptors(half)} in the two halves"
        )
    swaps, avoidable = avoidable_swaps(started)
    print(f"{swaps} swaps of the model, {swaps - avoidable} of which could not be avoided")
    for level in PRIORITY_NUMBERS:
        waits = [each.waited_seconds for each in started if each.priority == level]
        if waits:
            print(f"longest wait of a shard of priority {level}: {max(waits):.1f} s")


if __name__ == "__main__":
    main()
