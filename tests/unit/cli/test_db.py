from __future__ import annotations

import json
from pathlib import Path

from jobs.database import SCHEMA_REVISION
from tests.unit.cli.conftest import Tgp


def test_upgrade_brings_an_empty_database_to_the_newest(tgp: Tgp, home: Path) -> None:
    document = json.loads(tgp("db", "upgrade", "--json").stdout)
    assert document == {
        "database": f"sqlite:///{home / 'tgp-jobs.db'}",
        "revision": SCHEMA_REVISION,
        "newest": SCHEMA_REVISION,
        "is_newest": True,
        "upgraded": True,
    }
    assert json.loads(tgp("db", "upgrade", "--json").stdout) == document | {"upgraded": False}


def test_upgrade_tells_people_what_it_did(tgp: Tgp) -> None:
    assert tgp("db", "upgrade").stdout.endswith(f"went from empty to {SCHEMA_REVISION}\n")
    assert tgp("db", "upgrade").stdout.endswith(f"is at {SCHEMA_REVISION} already\n")


def test_current_shows_an_empty_database_and_exits_with_1(tgp: Tgp) -> None:
    result = tgp("db", "current")
    assert result.exit_code == 1
    assert result.stdout == f"empty; this program needs {SCHEMA_REVISION}: tgp-jobs db upgrade\n"


def test_current_shows_the_newest_and_exits_with_0(tgp: Tgp) -> None:
    tgp("db", "upgrade")
    result = tgp("db", "current")
    assert (result.exit_code, result.stdout) == (0, f"{SCHEMA_REVISION} (the newest)\n")
