"""`tgp-jobs db`: the database's schema."""

from __future__ import annotations

import click

from cli.examples import examples
from cli.ledger import connect_ledger
from cli.options import json_option, settings_options
from cli.output import print_json, say
from jobs.database import SCHEMA_REVISION, Database, schema_revision
from jobs.database import upgrade as upgrade_schema
from jobs.settings import Settings


@click.group()
@examples(
    "tgp-jobs db upgrade",
    "tgp-jobs db current",
)
def db() -> None:
    """Look after the database's schema."""


@db.command()
@examples(
    "tgp-jobs db upgrade --database-url postgresql://tgp@db.example/tgp",
)
@settings_options()
@json_option
def upgrade(*, settings: Settings, as_json: bool) -> None:
    """Bring the schema up to this program's; run it once after an update.

    Needed for Postgres; SQLite is upgraded on first use. Running it again, or
    from two machines at once, does no harm.
    """
    database = connect_ledger(settings)
    before = schema_revision(database)
    upgrade_schema(database)
    after = schema_revision(database)
    if as_json:
        print_json(_document(database, after) | {"upgraded": before != after})
    elif before == after:
        say(f"{database.shown_url} is at {after} already")
    else:
        say(f"{database.shown_url} went from {before or 'empty'} to {after}")


@db.command()
@examples(
    "tgp-jobs db current",
    "tgp-jobs db current --json",
)
@settings_options()
@json_option
@click.pass_context
def current(context: click.Context, *, settings: Settings, as_json: bool) -> None:
    """Show the schema's revision; exits with 1 if it is not this program's."""
    database = connect_ledger(settings)
    revision = schema_revision(database)
    is_newest = revision == SCHEMA_REVISION
    if as_json:
        print_json(_document(database, revision))
    elif is_newest:
        say(f"{revision} (the newest)")
    else:
        say(f"{revision or 'empty'}; this program needs {SCHEMA_REVISION}: tgp-jobs db upgrade")
    context.exit(0 if is_newest else 1)


def _document(database: Database, revision: str | None) -> dict[str, object]:
    return {
        "database": database.shown_url,
        "revision": revision,
        "newest": SCHEMA_REVISION,
        "is_newest": revision == SCHEMA_REVISION,
    }
