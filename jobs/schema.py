"""What has to be known of the schema without the tables, whose import takes SQLAlchemy's time."""

from __future__ import annotations

# The newest migration in alembic/versions; a test holds the two together, so
# that a command can tell an old schema without importing alembic (0.2 s).
SCHEMA_REVISION = "0003"

# The database's clock plus {offset} seconds, by the name of the backend.
NOW = {
    # '%f' has milliseconds; the zeros make it the width SQLAlchemy writes.
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f000', 'now', printf('%+.3f seconds', {offset}))",
    "postgresql": "(clock_timestamp() + make_interval(secs => {offset}))",
}
