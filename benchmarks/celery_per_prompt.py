"""The usual way to batch with Celery: one task per prompt, one row per result.

benchmarks.queue measures tgp-jobs beside it. The table is written with the
same driver settings as the ledger, one commit a task, because a task that is
acknowledged must not lose its completion.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, signals
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, func, insert, select

from jobs.database import Database

metadata = MetaData()
answers = Table(
    "answers", metadata, Column("prompt_index", Integer, primary_key=True), Column("text", Text)
)

app = Celery("celery_per_prompt", broker=os.environ.get("BENCHMARK_BROKER", "memory://"))
app.conf.update(
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    task_acks_late=True,
    # Celery's default prefetch: the baseline gets what makes it fastest.
    worker_prefetch_multiplier=4,
)
state: dict[str, Any] = {}


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def open_in_child(**_: Any) -> None:
    state["database"] = Database(os.environ["BENCHMARK_DATABASE"])


@app.task(name="answer")  # type: ignore[untyped-decorator]
def answer(prompt_index: int, prompt: str) -> None:
    """The null engine's work on one prompt, and the row it makes."""
    text = " ".join(prompt.split()[-4:])
    with state["database"].write() as connection:
        connection.execute(insert(answers).values(prompt_index=prompt_index, text=text))


def count_answers(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(answers)).scalar_one())
