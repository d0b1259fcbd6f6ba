"""Runs migrations on the connection it is handed, or on the configured database.

`tgp-jobs db upgrade` hands one over; `alembic revision --autogenerate` in a
checkout has none and connects by the settings.
"""

from alembic import context

from jobs.database import Database
from jobs.models import UtcDateTime, metadata
from jobs.settings import load_settings


def render_item(kind, item, _context):
    # A migration must not change its meaning when the program's own type does.
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run(connection) -> None:
    # Batch mode rebuilds a table where SQLite cannot alter it.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with Database(load_settings().effective_database_url).write() as connection:
        run(connection)
