"""Everything that `repair` mends and `doctor` tells of, in the order of mending."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cli.faults import Fault
from cli.ledger_faults import job_faults, lease_faults, message_faults
from cli.publish import is_listening
from cli.redis_faults import redis_faults
from cli.store_faults import finished_stores, half_made_stores, store_faults
from cli.worker_extra import is_installed
from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.errors import TgpError
from jobs.settings import Settings
from jobs.store.workers import live_workers

Look = tuple[str, Callable[[], Iterator[Fault]]]


def looks(
    settings: Settings, database: Database, dispatcher: Dispatcher, *, thorough: bool
) -> Iterator[Look]:
    """What is looked at, in the order in which mending one helps the next."""
    yield "leases", lambda: lease_faults(database)
    yield "jobs", lambda: job_faults(database)
    # An embedded Redis that is not running has nobody to hear a message.
    if not settings.redis_is_embedded or settings.redis_socket.exists():
        yield "embedded redis", lambda: redis_faults(settings)
    if not settings.redis_is_embedded or _is_served(settings):
        yield "messages", lambda: message_faults(database, dispatcher)
    if half_made_stores(settings) or (thorough and finished_stores(settings)):
        yield "stores", lambda: _store_faults(settings, database, thorough=thorough)


def _is_served(settings: Settings) -> bool:
    return is_listening(settings.redis_socket)


def _store_faults(settings: Settings, database: Database, *, thorough: bool) -> Iterator[Fault]:
    if not is_installed("torch"):
        raise TgpError("int8 copies can be looked at only where torch is installed")
    busy = {each.model for each in live_workers(database) if each.status == "loading"}
    return store_faults(settings, {each for each in busy if each}, thorough=thorough)
