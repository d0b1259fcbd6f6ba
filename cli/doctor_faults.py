"""What `doctor` says of the faults that `repair` mends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from cli.check import Check
from cli.faults import Fault
from cli.known_faults import Look, looks
from cli.ledger import connect_ledger
from cli.store_faults import half_made_stores
from jobs.database import check_schema
from jobs.dispatch import Dispatcher
from jobs.errors import TgpError
from jobs.settings import Settings

# What nobody mends by himself: a sweep queues shards and sends messages, and a
# worker that starts takes over a Redis.
LASTING = ("wrong_job_status",)
MEND = "tgp-jobs repair --dry-run says what it would do, tgp-jobs repair does it"


def check_faults(settings: Settings) -> Iterator[Check]:
    """What is broken in the ledger, in Redis and between them."""
    if settings.database_url is None and not (settings.home / "tgp-jobs.db").exists():
        return
    try:
        database = connect_ledger(settings)
        check_schema(database, upgrade_sqlite=False)
    except (TgpError, OSError):
        return  # told by the checks of the database
    with closing(Dispatcher(settings)) as dispatcher:
        for look in looks(settings, database, dispatcher, thorough=False):
            if look[0] != "stores":
                yield from _checked(look)


def _checked(look: Look) -> Iterator[Check]:
    name, find = look
    try:
        faults = list(find())
    except (TgpError, OSError):
        return  # told by the check of Redis
    if not faults:
        yield Check(name=name, status="ok", detail="nothing broken")
        return
    is_lasting = any(fault.kind in LASTING for fault in faults)
    yield Check(name=name, status="fail" if is_lasting else "warn", detail=_told(faults), mend=MEND)


def _told(faults: list[Fault]) -> str:
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return f"{faults[0].subject}: {faults[0].found}{more}"


def check_stores(settings: Settings) -> Check:
    """Whether int8 copies were begun and left."""
    from engine.store.care import is_being_made

    left = [folder for folder in half_made_stores(settings) if not is_being_made(folder)]
    if not left:
        return Check(name="stores", status="ok", detail="no half-made int8 copy")
    shown = ", ".join(folder.name for folder in left)
    return Check(
        name="stores",
        status="warn",
        detail=f"half made, and nobody is at it: {shown}",
        mend="tgp-jobs prepare MODEL goes on with it, tgp-jobs repair --stores deletes it",
    )
