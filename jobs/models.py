"""The ledger's tables.

Core tables rather than ORM classes: no code path keeps objects in a session,
and importing the ORM costs a seventh of the client's start-up budget
(docs/adr/0002-core-tables.md).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    literal,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

# Named constraints, because SQLite's batch migrations cannot drop nameless ones.
NAMING_CONVENTION = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: timestamptz on Postgres, text without a zone on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value if value is None else value.astimezone(UTC)
        return value.replace(tzinfo=UTC)  # type: ignore[no-any-return]


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock, plus a number of seconds.

    Leases are compared on this one clock, so a worker whose own is wrong does
    no harm. On Postgres it is the moment of the call, not of the transaction.
    """

    type = UtcDateTime()
    inherit_cache = True  # the offset is a bound parameter, so statements compile once
    name = "database_now"

    def __init__(self, offset_seconds: float = 0.0) -> None:
        super().__init__(literal(float(offset_seconds), Float))


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: Any, **options: Any) -> str:
    offset = compiler.process(element.clauses, **options)
    # '%f' has milliseconds; the zeros make it the width SQLAlchemy writes.
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {offset}))"


@compiles(database_now, "postgresql")
def _postgres_now(element: database_now, compiler: Any, **options: Any) -> str:
    offset = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + make_interval(secs => {offset}))"


metadata = MetaData(naming_convention=NAMING_CONVENTION)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(200)),
    Column("model", String(200), nullable=False),
    Column("status", String(16), nullable=False),  # queued running completed failed cancelled
    Column("priority", String(8), nullable=False),  # high normal low
    Column("parameters", JSON(none_as_null=True), nullable=False),  # job defaults
    Column("source_name", Text, nullable=False),
    Column("content_digest", String(64), nullable=False),
    Column("idempotency_key", String(200)),
    Column("shard_size", Integer, nullable=False),
    Column("total_prompts", Integer, nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    UniqueConstraint("idempotency_key"),
    Index(None, "created_at"),
)


def _index_of_status(status: str, moment: str) -> Index:
    """An index of the few shards that have a status now, by a moment.

    Not one of all shards by status: nearly all have ended, so statistics of
    such an index tell SQLite that reading the table is no worse, for any status.
    """
    # The migration makes it so on Postgres too; to say that here would import
    # Postgres' dialect in every command, which takes a twentieth of its time.
    return Index(f"ix_shards_{status}", "status", moment, sqlite_where=text(f"status = '{status}'"))


shards = Table(
    "shards",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(16), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    # Prompts first_index to last_index, both included.
    Column("first_index", Integer, nullable=False),
    Column("last_index", Integer, nullable=False),
    Column("status", String(16), nullable=False),  # queued running completed failed cancelled
    # Grows with every claim; each write must carry it, so a stale owner's is refused.
    Column("attempt", Integer, nullable=False, default=0),
    # How many owners died holding the shard since its last result.
    Column("crashes", Integer, nullable=False, default=0),
    Column("last_error", Text),  # of a crash that could be caught
    # Whether the owner is loading the model: a death then is not the prompts' fault.
    Column("loading", Boolean, nullable=False, default=False),
    Column("load_crashes", Integer, nullable=False, default=0),
    # Whether its owner has prompts of another shard in the same batch: a death then
    # is no proof against either, and each is run alone from there on.
    Column("beside_others", Boolean, nullable=False, default=False, server_default=false()),
    Column("runs_alone", Boolean, nullable=False, default=False, server_default=false()),
    Column("lease_owner", String(100)),
    Column("lease_process", Integer),
    Column("lease_expires_at", UtcDateTime),
    # When its message was last sent; None asks the sweeper to send one.
    Column("published_at", UtcDateTime),
    Column("completed_prompts", Integer, nullable=False, default=0),
    Column("failed_prompts", Integer, nullable=False, default=0),
    Column("prompt_tokens", Integer, nullable=False, default=0),
    Column("completion_tokens", Integer, nullable=False, default=0),
    Column("prefill_seconds", Float, nullable=False, default=0.0),
    Column("decode_seconds", Float, nullable=False, default=0.0),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Index(None, "job_id", "first_index"),
    _index_of_status("queued", "published_at"),
    _index_of_status("running", "lease_expires_at"),
    sqlite_autoincrement=True,  # a message for a deleted shard must never meet a new one
)
# To be used where no job or shard is named. Spelled out in the statement rather
# than given as parameters: SQLite and a prepared statement of Postgres use a
# partial index only if they can read that it holds the rows.
IS_QUEUED = shards.c.status == literal("queued", literal_execute=True)
IS_RUNNING = shards.c.status == literal("running", literal_execute=True)

prompts = Table(
    "prompts",
    metadata,
    Column("job_id", String(16), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("prompt_index", Integer, primary_key=True),
    Column("custom_id", Text),
    # Exactly one of the two: a text, or the messages of a chat.
    Column("prompt", Text),
    Column("messages", JSON(none_as_null=True)),
    Column("parameters", JSON(none_as_null=True)),  # what the line overrides, if anything
)

completions = Table(
    "completions",
    metadata,
    Column("job_id", String(16), primary_key=True),
    Column("prompt_index", Integer, primary_key=True),
    Column("shard_id", Integer, ForeignKey("shards.id", ondelete="CASCADE"), nullable=False),
    Column(
        "micro_batch_id",
        Integer,
        ForeignKey("micro_batches.id", ondelete="SET NULL"),
    ),
    Column("text", Text),
    Column("finish_reason", String(16)),  # stop length; None with an error
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("queued_seconds", Float, nullable=False),
    Column("prefill_seconds", Float, nullable=False),
    Column("decode_seconds", Float, nullable=False),
    # From the claim to the first token; None without one.
    Column("first_token_seconds", Float),
    Column("logprobs", JSON(none_as_null=True)),  # of each token, if they were asked for
    Column("attempt", Integer, nullable=False),
    Column("worker_id", String(100), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    ForeignKeyConstraint(
        ["job_id", "prompt_index"],
        ["prompts.job_id", "prompts.prompt_index"],
        ondelete="CASCADE",
    ),
    Index(None, "shard_id"),
)

micro_batches = Table(
    "micro_batches",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(16), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("shard_id", Integer, ForeignKey("shards.id", ondelete="CASCADE"), nullable=False),
    Column("worker_id", String(100), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("device", String(32), nullable=False),
    Column("compute_mode", String(32), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("prefill_seconds", Float, nullable=False),
    Column("decode_seconds", Float, nullable=False),
    Column("out_of_memory_retries", Integer, nullable=False),
    # Of the window's decode steps: how many, rows alive summed over them, rows
    # there was room for, weights that came over the link, and what took the time.
    Column("steps", Integer, nullable=False, server_default="0"),
    Column("row_steps", BigInteger, nullable=False, server_default="0"),
    Column("row_capacity", Integer, nullable=False, server_default="0"),
    Column("streamed_bytes", BigInteger, nullable=False, server_default="0"),
    Column("link_wait_seconds", Float, nullable=False, server_default="0"),
    Column("compute_seconds", Float, nullable=False, server_default="0"),
    Column("created_at", UtcDateTime, nullable=False),
    Index(None, "shard_id"),
    Index(None, "job_id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String(100), primary_key=True),
    Column("hostname", String(200), nullable=False),
    Column("process", Integer, nullable=False),
    Column("version", String(32), nullable=False),
    Column("status", String(16), nullable=False),  # idle loading running stopped
    Column("models", JSON, nullable=False),  # the aliases it serves
    Column("model", String(200)),  # the one it holds or loads
    Column("device", String(32)),
    Column("load_stage", String(32)),
    Column("load_done", Float),
    Column("load_total", Float),
    Column("load_unit", String(16)),
    Column("load_seconds", Float),
    Column("started_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
    Column("stopped_at", UtcDateTime),
)
