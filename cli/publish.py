"""Tell workers that a stored job may be run; without them it waits in the ledger."""

from __future__ import annotations

import socket
from pathlib import Path

from cli.output import note
from jobs.database import Database
from jobs.dispatch import Dispatcher
from jobs.errors import QueueUnavailableError
from jobs.settings import Settings

CONNECT_TIMEOUT_SECONDS = 2.0


def publish_job(settings: Settings, database: Database, job_id: str) -> bool:
    """Send the messages of a job's shards.

    Returns:
        False when there is nobody to send them to; a note says what happens
        then, and the next worker to start sweeps the job up.
    """
    # Asked before kombu and the Redis client are imported, a third of submit's CPU.
    if settings.redis_is_embedded and not is_listening(settings.redis_socket):
        note("no worker is running yet: start one with tgp-jobs worker")
        return False
    dispatcher = Dispatcher(settings)
    try:
        dispatcher.publish_unpublished(database, job_id)
    except QueueUnavailableError as error:
        note(
            f"{error.message}\njob {job_id} is stored: it starts when a worker with the same "
            "database starts or sweeps"
        )
        return False
    finally:
        dispatcher.close()
    return True


def is_listening(path: Path) -> bool:
    """Whether somebody answers at a Unix socket; its file outlives a killed server."""
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(CONNECT_TIMEOUT_SECONDS)
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True
