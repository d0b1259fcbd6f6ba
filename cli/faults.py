"""A fault that `doctor` tells of and `repair` mends, and those of the ledger.

What the next sweep or the next worker mends by itself is not among them: leases
that ran out, messages that are lost, a Redis that died.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from jobs.database import Database
from jobs.store.repair import Disagreement, mend_job, wrong_jobs

# What a disagreement is called, and what is done about it.
WORDS: Mapping[Disagreement, tuple[str, str]] = {
    "complete": ("although every prompt has a result", "complete the job"),
    "running": ("although a worker has one of its shards", "set the job running"),
    "reopen": ("although some of its shards have not ended", "let the job go on"),
    "no results": ("although some prompts have no result", "queue those prompts again"),
    "shards open": ("although some of its shards have not ended", "end those shards too"),
    "stuck": ("although none of its shards will be run", "queue what has no result"),
}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One broken thing.

    Attributes:
        kind: A word for programs, such as "wrong_job_status".
        subject: What is broken.
        found: What is wrong with it.
        mend: What repairing it does.
        repair: Does it, after another look; False when nothing was left to do.
    """

    kind: str
    subject: str
    found: str
    mend: str
    repair: Callable[[], bool]


def job_faults(database: Database) -> Iterator[Fault]:
    """Jobs whose status does not agree with their shards."""
    for wrong in wrong_jobs(database):
        found, mend = WORDS[wrong.disagreement]
        yield Fault(
            kind="wrong_job_status",
            subject=f"job {wrong.job_id}",
            found=f"it is {wrong.status} {found}",
            mend=mend,
            repair=partial(_mend, database, wrong.job_id),
        )


def _mend(database: Database, job_id: str) -> bool:
    return mend_job(database, job_id) is not None
