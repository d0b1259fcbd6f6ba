"""The database as a command holds it: open until the command ends."""

from __future__ import annotations

import click

from jobs.database import Database, connect, open_database
from jobs.settings import Settings


def open_ledger(settings: Settings) -> Database:
    """The database with this program's schema, closed when the command ends.

    Raises:
        TgpError: It cannot be reached, or its schema is another program's.
    """
    return _closed_at_end(open_database(settings))


def connect_ledger(settings: Settings) -> Database:
    """The same without a look at the schema."""
    return _closed_at_end(connect(settings))


def _closed_at_end(database: Database) -> Database:
    click.get_current_context().call_on_close(database.close)
    return database
