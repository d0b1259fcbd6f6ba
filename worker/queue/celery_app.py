"""The Celery worker: one child process, in which the model lives.

`tgp-jobs worker` calls start_worker; `celery -A worker.celery_app worker`
finds the same application under `app`, built from the environment and the
settings file.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from celery import Celery, signals
from celery.platforms import SecurityWarning
from kombu import Queue

from jobs.catalogue import find_model, load_catalogue
from jobs.dispatch import CONNECT_TIMEOUT_SECONDS, Dispatcher, queue_name, transport_options
from jobs.errors import QueueUnavailableError
from jobs.settings import Settings, load_settings
from worker.log import configure_logging
from worker.queue import foreign_messages
from worker.queue.foreign_messages import GuardedConsumer
from worker.queue.process import WorkerProcess
from worker.queue.sticky_queues import StickyCycle
from worker.queue.tasks import register_task


def build_app(settings: Settings, models: Sequence[str] = ()) -> Celery:
    """The worker's Celery application.

    Args:
        settings: The worker's settings.
        models: Aliases to serve; none means all of the catalogue.

    Raises:
        UnknownModelError: A model is not in the catalogue.
    """
    catalogue = load_catalogue(settings)
    if models:
        chosen = [find_model(catalogue, alias) for alias in models]
        catalogue = {alias: catalogue[alias] for alias in chosen}
    foreign_messages.install()
    app = Celery("tgp-jobs", broker=settings.effective_redis_url)
    queues = [Queue(queue_name(alias), routing_key=queue_name(alias)) for alias in catalogue]
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        enable_utc=True,
        task_queues=queues,
        task_default_queue=queues[0].name,
        worker_consumer=GuardedConsumer,
        worker_pool="worker.queue.pool:AttentiveTaskPool",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_deduplicate_successful_tasks=False,
        broker_connection_timeout=CONNECT_TIMEOUT_SECONDS,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=transport_options()
        | {"queue_order_strategy": lambda: StickyCycle(settings.sticky_seconds)},
    )
    process = WorkerProcess(settings=settings, catalogue=catalogue)
    register_task(app, process.run_shard)
    _connect_signals(app, process)
    return app


def _connect_signals(app: Celery, process: WorkerProcess) -> None:
    """Celery's signals are global, so each handler asks whether this app is meant."""

    def is_ours(sender: Any) -> bool:
        return getattr(sender, "app", app) is app

    def on_setup_logging(loglevel: int | None = None, **_: Any) -> None:
        configure_logging(process.settings.log_format, loglevel or logging.INFO)

    def on_init(sender: Any = None, **_: Any) -> None:
        if is_ours(sender):
            process.before_start(sender)

    def on_ready(sender: Any = None, **_: Any) -> None:
        if is_ours(sender):
            process.when_ready()

    def on_child(**_: Any) -> None:
        process.in_child()

    def on_stopping(**_: Any) -> None:
        process.when_stopping()

    def on_shutdown(sender: Any = None, **_: Any) -> None:
        if is_ours(sender):
            process.after_stop()

    signals.setup_logging.connect(on_setup_logging, weak=False)
    signals.worker_init.connect(on_init, weak=False)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_process_init.connect(on_child, weak=False)
    signals.worker_shutting_down.connect(on_stopping, weak=False)
    signals.worker_shutdown.connect(on_shutdown, weak=False)


def start_worker(settings: Settings, *, models: Sequence[str] = ()) -> int:
    """Run a worker until it is told to stop.

    Args:
        settings: The worker's settings.
        models: Aliases to serve; none means all of the catalogue.

    Returns:
        The process's exit code.

    Raises:
        SettingsError: The Redis URL cannot be used.
    """
    # Celery warns root of pickle; only JSON is accepted here, and a Colab box
    # has no other user.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # Before the first connection of any kind.
    foreign_messages.install()
    if not settings.redis_is_embedded:
        # Celery shows a URL that it cannot read, password and all, and a Redis
        # that is away only has to be waited for.
        with suppress(QueueUnavailableError), closing(Dispatcher(settings)) as dispatcher:
            dispatcher.ping()
    app = build_app(settings, models)
    arguments = ["--quiet", "worker", "--loglevel=INFO", "--without-gossip", "--without-mingle"]
    try:
        app.worker_main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def __getattr__(name: str) -> Any:
    # Built when `celery -A worker.queue.celery_app` looks for it, and only then:
    # importing this module must not read settings or connect signals.
    if name == "app":
        app = build_app(load_settings(environ=os.environ))
        setattr(sys.modules[__name__], "app", app)  # noqa: B010 - the next look-up finds it
        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
