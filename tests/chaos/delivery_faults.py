"""Messages that come too often, workers that want the same, clocks that are wrong."""

from __future__ import annotations

import os
import signal

from celery import Celery

from jobs.dispatch import TASK_NAME, queue_name
from tests.chaos.fault import fault
from tests.chaos.process_faults import while_much_is_generated
from tests.chaos.run import PROMPTS, Job, Run
from tests.chaos.stage import Needs

TWO_WORKERS = Needs(workers=2)
# Four on a box of two cores that others use too may all wait longer than the short
# lease for one commit. Nobody dies here, so no recovery waits for the lease.
FOUR_WORKERS = Needs(workers=4, lease_seconds=10.0)
HOUR_SECONDS = 3600.0


def deliver_again(run: Run, job: Job, times: int) -> None:
    """Send the messages of the job's queued shards again."""
    assert run.stage.redis is not None
    app = Celery(broker=run.stage.redis.url, set_as_current=False)
    try:
        for shard in run.stage.ledger.queued_shards(job.id) * times:
            app.send_task(TASK_NAME, args=[shard], queue=queue_name(job.model), serializer="json")
    finally:
        app.close()


@fault("every message delivered four times")
def four_deliveries(run: Run) -> None:
    job = run.submit("steady")
    run.pause(0.3)
    deliver_again(run, job, 3)


@fault("every message delivered four times, to four workers", FOUR_WORKERS)
def four_deliveries_to_four(run: Run) -> None:
    job = run.submit("steady", shard_size=4)
    run.pause(0.2)
    deliver_again(run, job, 3)


@fault("two workers on one shard", TWO_WORKERS)
def two_on_one_shard(run: Run) -> None:
    # Stored and not yet rung for, so that all its messages are sent at one moment.
    job = run.submit("quick", shard_size=len(PROMPTS))
    deliver_again(run, job, 3)


@fault("four workers on one job", FOUR_WORKERS)
def four_on_one_job(run: Run) -> None:
    run.wait_for_end(run.submit("steady", shard_size=4))
    if len({begun.process for begun in run.trace.read()}) < 2:
        run.problems.append("one worker did it all")


@fault(
    "two workers whose clocks are an hour fast and an hour slow, one killed",
    Needs(workers=2, clock_shifts=(HOUR_SECONDS, -HOUR_SECONDS)),
)
def wrong_clocks(run: Run) -> None:
    job = while_much_is_generated(run)
    worker = run.holder(job)
    child = run.stage.child_of(worker)
    run.strike(job, child=child)
    os.kill(worker.process.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    worker.process.wait()
