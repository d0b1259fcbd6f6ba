"""The database as a command holds it: open until the command ends."""

from __future__ import annotations

import click

from jobs.database import Database, check_schema, connect
from jobs.settings import Settings


def open_ledger(settings: Settings) -> Database:
    """The database with this program's schema, closed when the command ends.

    SQLite is created and upgraded on the way.

    Raises:
        TgpError: It cannot be reached, or its schema is another program's.
    """
    database = connect_ledger(settings)
    check_schema(database, upgrade_sqlite=True)
    return database


def connect_ledger(settings: Settings) -> Database:
    """The same without a look at the schema."""
    database = connect(settings)
    # Also when the command fails, and its connections with it.
    click.get_current_context().call_on_close(database.close)
    return database
