"""Indexes of the shards that wait and of those that run, instead of one by status.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

OLD_INDEX = "ix_shards_status_lease_expires_at"
# A shard's status, and the moment that is asked for beside it.
MOMENTS = {"queued": "published_at", "running": "lease_expires_at"}


def upgrade() -> None:
    for status, moment in MOMENTS.items():
        where = sa.text(f"status = '{status}'")
        op.create_index(
            f"ix_shards_{status}",
            "shards",
            ["status", moment],
            sqlite_where=where,
            postgresql_where=where,
        )
    op.drop_index(OLD_INDEX, table_name="shards")


def downgrade() -> None:
    op.create_index(OLD_INDEX, "shards", ["status", "lease_expires_at"])
    for status in MOMENTS:
        op.drop_index(f"ix_shards_{status}", table_name="shards")
