"""What is wrong between the ledger and Redis, each fault with its mending."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from cli.faults import Fault
from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.store import repair
from jobs.store.repair import Disagreement

# A message may be on its way for so long: sent and not in Redis yet, or taken
# from it by a worker that has not claimed the shard yet.
ON_ITS_WAY_SECONDS = 5.0
# What a disagreement is called, and what is done about it.
WORDS: Mapping[Disagreement, tuple[str, str]] = {
    "complete": ("although every prompt has a result", "complete the job"),
    "running": ("although a worker has one of its shards", "set the job running"),
    "reopen": ("although some of its shards have not ended", "let the job go on"),
    "no results": ("although some prompts have no result", "queue those prompts again"),
    "shards open": ("although some of its shards have not ended", "end those shards too"),
    "stuck": ("although none of its shards will be run", "queue what has no result"),
}


def lease_faults(database: Database) -> Iterator[Fault]:
    """Shards that nobody runs any more."""
    for lease in repair.orphaned_leases(database):
        owner = f", {lease.owner}" if lease.owner else ""
        yield Fault(
            kind="orphaned_lease",
            subject=f"shard {lease.shard_id} of job {lease.job_id}",
            found=f"it is running, but {lease.reason}{owner}",
            mend="queue it again",
            repair=partial(_requeue, database, lease.shard_id),
        )


def job_faults(database: Database) -> Iterator[Fault]:
    """Jobs whose status does not agree with their shards."""
    for wrong in repair.wrong_jobs(database):
        found, mend = WORDS[wrong.disagreement]
        yield Fault(
            kind="wrong_job_status",
            subject=f"job {wrong.job_id}",
            found=f"it is {wrong.status} {found}",
            mend=mend,
            repair=partial(_mend_job, database, wrong.job_id),
        )


def message_faults(database: Database, dispatcher: Dispatcher) -> Iterator[Fault]:
    """Queued shards that no worker will hear of before the next sweep.

    Raises:
        QueueUnavailableError: Redis cannot be reached.
    """
    for shard_id in dispatcher.unheard_shards(database, ON_ITS_WAY_SECONDS):
        yield Fault(
            kind="no_message",
            subject=f"shard {shard_id}",
            found="it is queued, but Redis has no message for it",
            mend="send one",
            repair=partial(_send, database, dispatcher, shard_id),
        )


def _requeue(database: Database, shard_id: int) -> bool:
    return bool(repair.requeue_orphans(database, [shard_id]))


def _mend_job(database: Database, job_id: str) -> bool:
    return repair.mend_job(database, job_id) is not None


def _send(database: Database, dispatcher: Dispatcher, shard_id: int) -> bool:
    return bool(dispatcher.publish_these(database, [shard_id]))
