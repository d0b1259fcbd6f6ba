"""Processes that are killed, stopped and told to go, at any moment."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.box import Worker
from tests.chaos.fault import Play, fault
from tests.chaos.run import CALM_POLL_SECONDS, Job, Run
from tests.chaos.stage import LEASE_SECONDS, REAL_MODELS, SWEEP_SECONDS, Needs
from tests.chaos.verdict import MOST_REPEATED_PER_STRIKE

MANY_PROMPTS = tuple(f"say something short of number {number}" for number in range(144))
# A load's imports and a collection of all garbage keep the thread that renews the
# lease waiting: half a second on an idle machine, nine on one with a load of 18.
REAL_LEASE_SECONDS = 20.0
REAL = Needs(lease_seconds=REAL_LEASE_SECONDS)
# A run takes ten to fifty seconds.
REAL_PROMPTS = tuple(f"the worker number {number} is" for number in range(12))


def while_loading(run: Run) -> Job:
    return run.wait_until_loading()


def while_generating(run: Run) -> Job:
    job = run.submit("steady")
    run.wait_until_some_are_begun(job)
    return job


def while_much_is_generated(run: Run) -> Job:
    """More of it: two workers are quick, and one that is told to stop takes a moment."""
    job = run.submit("steady", MANY_PROMPTS)
    run.wait_until_some_are_begun(job, most_share=0.6)
    return job


def while_writing(run: Run) -> Job:
    """An engine that answers at once: the worker does nothing but claim and write."""
    job = run.submit("quick", MANY_PROMPTS, shard_size=24)
    run.wait_until_some_are_begun(job, most_share=0.6)
    return job


def in_a_real_model(run: Run) -> Job:
    """A small checkpoint: loading, prefill, decode or between two steps."""
    job = run.submit(REAL_MODELS[0], REAL_PROMPTS, "--max-new-tokens", "12", shard_size=6)
    run.wait_until_some_are_begun(job)
    run.pause(0.3)
    return job


def kill_child(run: Run, job: Job) -> None:
    child = run.stage.child_of(run.holder(job))
    run.strike(job, child=child)
    os.kill(child, signal.SIGKILL)


def kill_parent(run: Run, job: Job) -> None:
    """The child sees that it has no parent, and gives back what it holds."""
    worker = run.holder(job)
    child = run.stage.child_of(worker)
    run.strike(job, child=child)
    worker.kill()
    run.start_worker()
    run.wait_until(lambda: not Path(f"/proc/{child}").exists(), poll_seconds=CALM_POLL_SECONDS)
    if Path(f"/proc/{child}").exists():
        run.problems.append("the child outlives its parent")


def kill_both(run: Run, job: Job) -> None:
    worker = run.holder(job)
    child = run.stage.child_of(worker)
    run.strike(job, child=child)
    os.kill(worker.process.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    worker.process.wait()
    run.start_worker()


MOMENTS: dict[str, Callable[[Run], Job]] = {
    "while it loads": while_loading,
    "while it generates": while_generating,
    "while it writes results": while_writing,
}
VICTIMS: dict[str, Callable[[Run, Job], None]] = {
    "child": kill_child,
    "parent": kill_parent,
    "parent and child": kill_both,
}


def kill(victim: str, moment: str) -> Play:
    def play(run: Run) -> None:
        VICTIMS[victim](run, MOMENTS[moment](run))

    return play


for _victim in VICTIMS:
    for _moment in MOMENTS:
        fault(f"`kill -9` of the worker's {_victim}, {_moment}")(kill(_victim, _moment))


@fault("`kill -9` of the child in a real model", REAL)
def kill_real(run: Run) -> None:
    job = in_a_real_model(run)
    # Its rows are generated together, and those that follow are taken beforehand.
    run.strikes += len(REAL_PROMPTS) // MOST_REPEATED_PER_STRIKE
    kill_child(run, job)
    # The new child imports torch and loads the model before it can go on.
    run.wait_for_end(job)
    run.allowance_seconds += run.last_import_seconds() + run.last_load_seconds()


@fault("SIGTERM, and a new worker")
def sigterm(run: Run) -> None:
    job = while_much_is_generated(run)
    worker = run.holder(job)
    began = time.monotonic()
    run.strike(job, child=run.stage.child_of(worker))
    if (code := worker.stop(signal.SIGTERM)) != 0:
        run.problems.append(f"the worker ended with {code}")
    run.allowance_seconds += time.monotonic() - began
    run.start_worker()


@fault("two Ctrl-C, and a new worker")
def two_interrupts(run: Run) -> None:
    job = while_much_is_generated(run)
    worker = run.holder(job)
    began = time.monotonic()
    run.strike(job, child=run.stage.child_of(worker))
    worker.process.send_signal(signal.SIGINT)
    run.pause(0.3)
    if worker.process.poll() is None:
        worker.process.send_signal(signal.SIGINT)
    worker.process.wait(30)
    run.allowance_seconds += time.monotonic() - began
    run.start_worker()


def send_to_both(run: Run, worker: Worker, number: int) -> None:
    child = run.stage.child_of(worker)
    os.kill(worker.process.pid, number)
    os.kill(child, number)


@fault("SIGSTOP for longer than the lease, then SIGCONT, beside another worker", Needs(workers=2))
def sleep_through_the_lease(run: Run) -> None:
    job = while_much_is_generated(run)
    worker = run.holder(job)
    run.strike(job, child=run.stage.child_of(worker))
    send_to_both(run, worker, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS)
    run.pause(2 * SWEEP_SECONDS)
    send_to_both(run, worker, signal.SIGCONT)


@fault("`kill -9` of one of two workers", Needs(workers=2))
def kill_one_of_two(run: Run) -> None:
    job = while_much_is_generated(run)
    worker = run.holder(job)
    child = run.stage.child_of(worker)
    run.strike(job, child=child)
    os.kill(worker.process.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    worker.process.wait()
