"""What a decode step took, the time to the first token, logprobs, and shards side by side.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Rows that are there took no steps that anybody counted.
STEP_COLUMNS = (
    ("steps", sa.Integer()),
    ("row_steps", sa.BigInteger()),
    ("row_capacity", sa.Integer()),
    ("streamed_bytes", sa.BigInteger()),
    ("link_wait_seconds", sa.Float()),
    ("compute_seconds", sa.Float()),
)


COMPANY_COLUMNS = ("beside_others", "runs_alone")


def upgrade() -> None:
    # Added in place: neither database rewrites a table for these.
    op.add_column("completions", sa.Column("first_token_seconds", sa.Float(), nullable=True))
    op.add_column("completions", sa.Column("logprobs", sa.JSON(none_as_null=True), nullable=True))
    for name, kind in STEP_COLUMNS:
        op.add_column(
            "micro_batches", sa.Column(name, kind, nullable=False, server_default=sa.text("0"))
        )

    for name in COMPANY_COLUMNS:
        op.add_column(
            "shards", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())
        )


def downgrade() -> None:
    for name in reversed(COMPANY_COLUMNS):
        op.drop_column("shards", name)
    for name, _ in reversed(STEP_COLUMNS):
        op.drop_column("micro_batches", name)
    op.drop_column("completions", "logprobs")
    op.drop_column("completions", "first_token_seconds")
