"""Who is alive, what it serves and what it holds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import insert, select, update

from jobs.database import Database
from jobs.models import database_now, workers
from jobs.store.reading import LIVE
from jobs.store.records import WorkerReport


def register_worker(
    database: Database,
    *,
    worker_id: str,
    hostname: str,
    process: int,
    version: str,
    models: list[str],
) -> None:
    """A worker has started."""
    with database.write() as connection:
        connection.execute(
            insert(workers).values(
                id=worker_id,
                hostname=hostname,
                process=process,
                version=version,
                status="idle",
                models=models,
                started_at=database_now(),
                last_seen_at=database_now(),
            )
        )


def worker_seen(database: Database, worker_id: str) -> None:
    """The worker is alive."""
    _update(database, worker_id, {})


def worker_loading(
    database: Database, worker_id: str, *, model: str, stage: str, done: int, total: int, unit: str
) -> None:
    """The worker is loading a model and is so far with it."""
    values = {"status": "loading", "model": model, "load_seconds": None}
    _update(
        database,
        worker_id,
        values | {"load_stage": stage, "load_done": done, "load_total": total, "load_unit": unit},
    )


def worker_loaded(
    database: Database, worker_id: str, *, model: str, device: str, load_seconds: float
) -> None:
    """The worker holds the model."""
    values = {"status": "idle", "model": model, "device": device, "load_seconds": load_seconds}
    _update(database, worker_id, values | NO_LOAD)


def worker_unloaded(database: Database, worker_id: str) -> None:
    """The worker holds no model: none yet, a failed load, or a dead child."""
    _update(database, worker_id, {"status": "idle", "model": None, "load_seconds": None} | NO_LOAD)


def worker_stopped(database: Database, worker_id: str) -> None:
    """The worker has ended in good order."""
    _update(
        database,
        worker_id,
        {"status": "stopped", "model": None, "stopped_at": database_now()} | NO_LOAD,
    )


def live_workers(database: Database) -> list[WorkerReport]:
    """The workers seen lately, oldest first."""
    query = select(workers, database_now().label("now")).where(*LIVE).order_by(workers.c.started_at)
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [
        WorkerReport(
            id=row.id,
            hostname=row.hostname,
            process=row.process,
            version=row.version,
            status=row.status,
            models=row.models,
            model=row.model,
            device=row.device,
            seconds_since_seen=(row.now - row.last_seen_at).total_seconds(),
            started_at=row.started_at,
        )
        for row in rows
    ]


NO_LOAD: dict[str, None] = {
    "load_stage": None,
    "load_done": None,
    "load_total": None,
    "load_unit": None,
}


def _update(database: Database, worker_id: str, values: dict[str, Any]) -> None:
    with database.write() as connection:
        connection.execute(
            update(workers)
            .where(workers.c.id == worker_id)
            .values(last_seen_at=database_now(), **values)
        )
