"""Prompts that kill their worker, and models that cannot be loaded."""

from __future__ import annotations

from math import ceil, log2

from tests.chaos.fault import fault
from tests.chaos.run import PROMPTS, Job, Run
from tests.chaos.stage import Needs

MAX_CRASHES = 2
POISON = "boom"
FEW_CRASHES = Needs(max_crashes=MAX_CRASHES)
BROKEN_PROMPTS = tuple(f"nobody will ever answer number {number}" for number in range(16))


def play_poison(run: Run, before: int, after: int) -> None:
    """A job of one shard with a prompt in it that kills whoever takes it."""
    prompts = (*PROMPTS[:before], POISON, *PROMPTS[before : before + after])
    job = run.submit("bomb", prompts, shard_size=len(prompts))
    job.failing = {before: "worker_crashed"}
    run.wait_for_end(job)
    deaths = sum(begun.prompt == POISON for begun in run.trace.read())
    run.strikes += deaths
    # The whole shard, a half at a time, and then the prompt alone.
    most = MAX_CRASHES + ceil(log2(len(prompts))) + MAX_CRASHES
    if deaths > most:
        run.problems.append(f"the prompt killed {deaths} workers, more than {most}")


@fault("a prompt that kills its worker, alone", FEW_CRASHES)
def poison_alone(run: Run) -> None:
    play_poison(run, 0, 0)


@fault("a prompt that kills its worker, in mid-shard", FEW_CRASHES)
def poison_in_shard(run: Run) -> None:
    before = run.random.randrange(1, 15)
    play_poison(run, before, 15 - before)


@fault("a model that cannot be loaded, beside a job that goes on")
def broken_model(run: Run) -> None:
    job = run.submit("steady")
    run.pause(0.5)
    file = run.submit_command("broken", BROKEN_PROMPTS)
    job_id = run.stage.box.run(*file).stdout.strip()
    broken = run.expect(Job(id=job_id, model="broken", prompts=BROKEN_PROMPTS, status="failed"))
    for each in (job, broken):
        run.wait_for_end(each)
    error = run.stage.box.status(job_id)["error"]
    if error["code"] != "model_load_failed" or "nowhere" not in error["message"]:
        run.problems.append(f"the job of a model without a folder failed with {error}")
