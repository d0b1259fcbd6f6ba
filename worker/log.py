"""The worker's log: one event a line, on standard error, as text or as JSON.

A line is an event with its fields: `shard_finished job=k3m9 shard=7 prompts=256`.
Celery's own lines go through the same renderer.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from jobs.wording import printable

# An event of Celery's, or a traceback.
MANY_LINES = ("event", "exception")

Logger = structlog.stdlib.BoundLogger


def configure_logging(log_format: str, level: int = logging.INFO) -> None:
    """Send every log line of the process to standard error.

    Args:
        log_format: "text" or "json".
        level: The least severe level that is shown.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any
    if log_format == "json":
        # In ASCII: exact for a program, and nothing that a terminal acts on.
        renderer = structlog.processors.JSONRenderer(ensure_ascii=True)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, sort_keys=False
        )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_lost_child_in_a_line)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *([] if log_format == "json" else [_for_terminal]),
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # The pool of child processes logs past the root.
    logging.getLogger("multiprocessing").handlers[:] = [handler]
    # Celery tells of each message it receives and acknowledges; ours say more.
    for chatty in ("celery.app.trace", "celery.worker.strategy", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _for_terminal(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escapes for what a terminal would act on: fields hold words of clients and models."""
    return {
        key: printable(value, keep_newlines=key in MANY_LINES) if isinstance(value, str) else value
        for key, value in event.items()
    }


def _lost_child_in_a_line(record: logging.LogRecord) -> bool:
    """Celery says of a dead child in a page of traceback what fits on a line."""
    if "WorkerLostError" in record.getMessage():
        record.exc_info = record.exc_text = None
    return True


def get_logger() -> Logger:
    logger: Logger = structlog.stdlib.get_logger("tgp-jobs")
    return logger
