from __future__ import annotations

import json
from pathlib import Path

from jobs.database import Database
from jobs.store.workers import register_worker, worker_loaded
from tests.unit.cli.conftest import Tgp


def test_the_catalogue_is_listed_with_its_workers(tgp: Tgp, sqlite_database: Database) -> None:
    register_worker(
        sqlite_database,
        worker_id="w1",
        hostname="box",
        process=1,
        version="1",
        models=["bloom-7b1", "own-model"],
    )
    worker_loaded(sqlite_database, "w1", model="bloom-7b1", device="cuda", load_seconds=1.0)
    models = {each["alias"]: each for each in json.loads(tgp("models", "--json").stdout)}
    worker = {"id": "w1", "hostname": "box", "status": "idle", "device": "cuda", "loading": False}
    assert models["bloom-7b1"] == {
        "alias": "bloom-7b1",
        "location": "bigscience/bloom-7b1",
        "revision": None,
        "description": "BLOOM 7.1B, 46 languages, ALiBi",
        "workers": [worker | {"holds": True}],
    }
    assert models["own-model"]["location"] is None
    assert models["own-model"]["workers"] == [worker | {"holds": False}]
    assert models["flan-ul2"]["workers"] == []


def test_a_table_is_shown_to_people(tgp: Tgp) -> None:
    result = tgp("models")
    assert result.exit_code == 0
    assert "EleutherAI/gpt-neox-20b" in result.stdout
    assert "\x1b" not in result.stdout


def test_the_catalogue_is_listed_even_without_a_database(tgp: Tgp) -> None:
    url = "postgresql://user:secret@127.0.0.1:1/none"
    result = tgp("models", "--json", "--database-url", url)
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)) >= 8
    assert result.stderr.startswith("workers are not known: ")
    assert "secret" not in result.stderr


def test_a_catalogue_file_adds_models(tgp: Tgp, tmp_path: Path) -> None:
    path = tmp_path / "more.toml"
    path.write_text('[models.mine]\nhub_id = "me/mine"\nrevision = "v2"\n')
    models = json.loads(tgp("models", "--json", "--catalogue", path).stdout)
    assert (models[-1]["alias"], models[-1]["revision"]) == ("mine", "v2")
