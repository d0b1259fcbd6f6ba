"""A damaged file, submitted for real: stored whole, or refused and nothing of it is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from cli.main import cli
from jobs.database import Database, open_database
from jobs.models import jobs, prompts, shards
from jobs.settings import Settings
from tests.fuzz.test_targets import damaged

pytestmark = pytest.mark.integration


def stored(database: Database) -> list[int]:
    """How many jobs, shards and prompts there are."""
    with database.read() as connection:
        return [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (jobs, shards, prompts)
        ]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
@pytest.mark.parametrize(
    ("seeds", "name"),
    [("jsonl", "p.jsonl"), ("csv", "p.csv"), ("text", "p.txt"), ("gzip", "p.jsonl.gz")],
)
def test_nothing_is_stored_from_a_refused_file(
    tmp_path: Path, seeds: str, name: str, data: st.DataObject
) -> None:
    home, path = tmp_path / "home", tmp_path / name
    content = data.draw(damaged(seeds))
    path.write_bytes(b"\x1f\x8b" + content if seeds == "gzip" else content)
    database = open_database(Settings(home=home))
    before = stored(database)
    # An exception that is no refusal would come through here.
    done = CliRunner().invoke(
        cli,
        ["submit", str(path), "--model", "tiny-bloom", "--json", "--home", str(home)],
        catch_exceptions=False,
        prog_name="tgp-jobs",
    )
    after = stored(database)
    database.close()
    if done.exit_code == 0:
        document = json.loads(done.stdout)
        added = [1, document["shards"], document["prompts"]]
        assert [new - old for new, old in zip(after, before, strict=True)] == added
    else:
        assert done.exit_code == 2
        assert json.loads(done.stderr)["error"]["message"]
        assert after == before
