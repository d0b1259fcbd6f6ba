"""The ledger: jobs, shards, prompts, completions, micro-batches and workers.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("priority", sa.String(length=8), nullable=False),
        sa.Column("parameters", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("source_name", sa.Text(), nullable=False),
        sa.Column("content_digest", sa.String(length=64), nullable=False),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("shard_size", sa.Integer(), nullable=False),
        sa.Column("total_prompts", sa.Integer(), nullable=False),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("hostname", sa.String(length=200), nullable=False),
        sa.Column("process", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=True),
        sa.Column("device", sa.String(length=32), nullable=True),
        sa.Column("load_stage", sa.String(length=32), nullable=True),
        sa.Column("load_done", sa.Float(), nullable=True),
        sa.Column("load_total", sa.Float(), nullable=True),
        sa.Column("load_unit", sa.String(length=16), nullable=True),
        sa.Column("load_seconds", sa.Float(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stopped_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "prompts",
        sa.Column("job_id", sa.String(length=16), nullable=False),
        sa.Column("prompt_index", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("messages", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("parameters", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_prompts_job_id_jobs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "prompt_index", name="pk_prompts"),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=16), nullable=False),
        sa.Column("first_index", sa.Integer(), nullable=False),
        sa.Column("last_index", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("loading", sa.Boolean(), nullable=False),
        sa.Column("load_crashes", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_process", sa.Integer(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("completed_prompts", sa.Integer(), nullable=False),
        sa.Column("failed_prompts", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("prefill_seconds", sa.Float(), nullable=False),
        sa.Column("decode_seconds", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_shards_job_id_jobs", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_shards"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_shards_job_id_first_index", "shards", ["job_id", "first_index"])
    op.create_index("ix_shards_status_lease_expires_at", "shards", ["status", "lease_expires_at"])
    op.create_table(
        "micro_batches",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=16), nullable=False),
        sa.Column("shard_id", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=100), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=32), nullable=False),
        sa.Column("compute_mode", sa.String(length=32), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("prefill_seconds", sa.Float(), nullable=False),
        sa.Column("decode_seconds", sa.Float(), nullable=False),
        sa.Column("out_of_memory_retries", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name="fk_micro_batches_job_id_jobs", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["shard_id"], ["shards.id"], name="fk_micro_batches_shard_id_shards", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_micro_batches"),
    )
    op.create_index("ix_micro_batches_job_id", "micro_batches", ["job_id"])
    op.create_index("ix_micro_batches_shard_id", "micro_batches", ["shard_id"])
    op.create_table(
        "completions",
        sa.Column("job_id", sa.String(length=16), nullable=False),
        sa.Column("prompt_index", sa.Integer(), nullable=False),
        sa.Column("shard_id", sa.Integer(), nullable=False),
        sa.Column("micro_batch_id", sa.Integer(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.String(length=16), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("queued_seconds", sa.Float(), nullable=False),
        sa.Column("prefill_seconds", sa.Float(), nullable=False),
        sa.Column("decode_seconds", sa.Float(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=100), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "prompt_index"],
            ["prompts.job_id", "prompts.prompt_index"],
            name="fk_completions_job_id_prompt_index_prompts",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["micro_batch_id"],
            ["micro_batches.id"],
            name="fk_completions_micro_batch_id_micro_batches",
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["shard_id"], ["shards.id"], name="fk_completions_shard_id_shards", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", "prompt_index", name="pk_completions"),
    )
    op.create_index("ix_completions_shard_id", "completions", ["shard_id"])


def downgrade() -> None:
    op.drop_index("ix_completions_shard_id", table_name="completions")
    op.drop_table("completions")
    op.drop_index("ix_micro_batches_shard_id", table_name="micro_batches")
    op.drop_index("ix_micro_batches_job_id", table_name="micro_batches")
    op.drop_table("micro_batches")
    op.drop_index("ix_shards_status_lease_expires_at", table_name="shards")
    op.drop_index("ix_shards_job_id_first_index", table_name="shards")
    op.drop_table("shards")
    op.drop_table("prompts")
    op.drop_table("workers")
    op.drop_index("ix_jobs_created_at", table_name="jobs")
    op.drop_table("jobs")
