"""`doctor` finds and `repair` mends what operators meet; each state is broken for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from engine.store.lock import store_lock
from jobs.database import Database
from jobs.models import jobs, shards
from jobs.settings import Settings
from jobs.store import control, leases, recovery
from jobs.store.reading import job_report
from tests.ledger import (
    claim,
    expire_lease,
    record,
    results_of,
    run_job,
    shard,
    shard_ids,
    submit,
    submit_and_claim,
    work_through,
)
from tests.stores import never, prepare
from tests.tiny_checkpoints import save_random_checkpoint
from tests.unit.cli.conftest import Tgp, tgp
from tests.unit.cli.test_doctor import _no_torch_is_imported

__all__ = ["_no_torch_is_imported", "tgp"]

pytestmark = pytest.mark.integration

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def repair(tgp: Tgp, database_settings: Settings) -> Run:
    """`tgp-jobs repair --json` on the test's ledger; it must end well or be a dry run."""

    def run(*options: str) -> dict[str, Any]:
        url = ("--database-url", database_settings.effective_database_url)
        done = tgp("repair", "--json", *url, *options)
        document: dict[str, Any] = json.loads(done.stdout)
        assert done.exit_code == (0 if document["ok"] else 1)
        assert done.stderr == ""
        return document

    return run


def outcomes(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(fault["kind"], fault["outcome"]) for fault in document["faults"]]


def assert_mended(repair: Run) -> None:
    """A dry run finds it and changes nothing, a run mends it, the next finds nothing."""
    for _ in range(2):
        dry = repair("--dry-run")
        assert outcomes(dry) == [("wrong_job_status", "would be mended")]
        assert dry["ok"] is False
    assert outcomes(repair()) == [("wrong_job_status", "mended")]
    assert repair() == {"ok": True, "dry_run": False, "faults": []}


def assert_whole(database: Database, job_id: str, total: int) -> None:
    """The job can be run to its end, and each prompt has one result."""
    run_job(database, job_id)
    report = job_report(database, job_id)
    assert (report.status, report.completed, report.pending) == ("completed", total, 0)
    assert sorted(results_of(database, job_id)) == list(range(total))


def set_status(database: Database, job_id: str, status: str) -> None:
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(status=status))


class TestJobs:
    def test_a_job_with_all_results_that_still_runs(self, database: Database, repair: Run) -> None:
        job_id = submit(database, 8)
        run_job(database, job_id)
        set_status(database, job_id, "running")
        assert_mended(repair)
        assert_whole(database, job_id, 8)

    def test_a_completed_job_with_a_shard_left_over(self, database: Database, repair: Run) -> None:
        job_id = submit(database, 8)
        work_through(database, claim(database, shard_ids(database, job_id)[0]))
        set_status(database, job_id, "completed")
        assert_mended(repair)
        assert_whole(database, job_id, 8)

    def test_a_completed_job_that_lacks_results(self, database: Database, repair: Run) -> None:
        # given a shard that was ended with one of its prompts not done
        job_id = submit(database, 8)
        first, second = shard_ids(database, job_id)
        work_through(database, claim(database, first))
        held = claim(database, second)
        record(database, held, [4, 5, 7])
        leases.finish_shard(database, held)
        assert job_report(database, job_id).status == "completed"
        assert_mended(repair)
        assert_whole(database, job_id, 8)

    def test_a_completed_job_whose_counts_are_wrong(self, database: Database, repair: Run) -> None:
        job_id = submit(database, 8)
        run_job(database, job_id)
        with database.write() as connection:
            connection.execute(update(shards).values(completed_prompts=0))
        assert_mended(repair)
        assert_whole(database, job_id, 8)

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    def test_an_ended_job_with_shards_that_are_open(
        self, database: Database, repair: Run, status: str
    ) -> None:
        held = submit_and_claim(database, 8)
        set_status(database, held.job_id, status)
        assert_mended(repair)
        assert job_report(database, held.job_id).status == status
        assert {shard(database, each).status for each in shard_ids(database, held.job_id)} == {
            status
        }

    def test_a_queued_job_with_a_running_shard(self, database: Database, repair: Run) -> None:
        held = submit_and_claim(database, 8)
        set_status(database, held.job_id, "queued")
        assert_mended(repair)
        work_through(database, held)
        assert_whole(database, held.job_id, 8)

    def test_a_running_job_whose_shards_have_all_failed(
        self, database: Database, repair: Run
    ) -> None:
        held = submit_and_claim(database, 8)
        record(database, held, [1])
        leases.fail_job(database, held, code="model_load_failed", message="x")
        set_status(database, held.job_id, "running")
        assert_mended(repair)
        assert_whole(database, held.job_id, 8)

    def test_sound_jobs_of_every_kind_are_left_alone(self, database: Database, repair: Run) -> None:
        submit(database, 8)
        submit_and_claim(database, 8)
        run_job(database, submit(database, 8), failing=[3])
        control.cancel_job(database, submit_and_claim(database, 8).job_id)
        leases.fail_job(database, submit_and_claim(database, 8), code="c", message="m")
        retried = submit(database, 8)
        run_job(database, retried, failing=[3])
        control.retry_job(database, retried)
        assert repair()["faults"] == []


def test_a_retried_job_whose_failed_shard_had_all_its_results_ends(database: Database) -> None:
    # given two shards: one whose owner wrote its last result just before the
    # other one's owner failed the job
    job_id = submit(database, 8)
    first, second = (claim(database, each) for each in shard_ids(database, job_id))
    record(database, first, [0, 1, 2, 3])
    leases.fail_job(database, second, code="model_load_failed", message="x")
    # when it is retried
    assert control.retry_job(database, job_id) == 4
    # then it comes to its end
    assert_whole(database, job_id, 8)


def test_what_a_sweep_mends_is_left_to_it(database: Database, repair: Run) -> None:
    # given a lease that ran out, and a shard without a message
    held = submit_and_claim(database)
    expire_lease(database, held.shard_id)
    submit(database)
    assert repair() == {"ok": True, "dry_run": False, "faults": []}
    assert recovery.requeue_expired(database) == [held.shard_id]


def test_repair_asks_nothing_of_redis(tgp: Tgp, sqlite_database: Database) -> None:
    assert tgp("repair", "--redis-url", "redis://127.0.0.1:1/0").stdout == "nothing is broken\n"


def test_repair_beside_workers_takes_nothing_from_them(database: Database, repair: Run) -> None:
    """Claims, results and repairs in turn: nothing is lost and nothing done twice."""
    job_id = submit(database, 40)
    for each in shard_ids(database, job_id):
        held = claim(database, each)
        repair()
        record(database, held, [held.first_index])
        repair()
        record(database, held, list(range(held.first_index + 1, held.last_index + 1)))
        repair()
        leases.finish_shard(database, held)
    assert_whole(database, job_id, 40)


def test_doctor_finds_what_repair_mends(tgp: Tgp, sqlite_database: Database) -> None:
    finished = submit(sqlite_database, 4)
    run_job(sqlite_database, finished)
    set_status(sqlite_database, finished, "running")

    def found() -> dict[str, str]:
        checks = json.loads(tgp("doctor", "--json").stdout)["checks"]
        names = ("jobs", "stores")
        return {each["name"]: each["status"] for each in checks if each["name"] in names}

    assert found() == {"jobs": "fail", "stores": "ok"}
    assert tgp("repair").exit_code == 0
    assert found() == {"jobs": "ok", "stores": "ok"}


def test_people_are_told_what_was_done(tgp: Tgp, sqlite_database: Database) -> None:
    assert tgp("repair").stdout == "nothing is broken\n"
    job_id = submit(sqlite_database)
    run_job(sqlite_database, job_id)
    set_status(sqlite_database, job_id, "running")
    dry = tgp("repair", "--dry-run")
    assert dry.exit_code == 1
    assert "would be mended" in dry.stdout
    assert "it is running although every prompt has a result" in dry.stdout
    done = tgp("repair")
    assert done.exit_code == 0
    assert f"job {job_id}" in done.stdout
    assert "complete the job" in done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint("tiny-bloom", tmp_path_factory.mktemp("checkpoint"))


class TestStores:
    def outcome(self, tgp: Tgp, *options: str) -> list[tuple[str, str]]:
        return outcomes(json.loads(tgp("repair", "--json", *options).stdout))

    def test_a_damaged_copy_loses_only_what_is_damaged(
        self, tgp: Tgp, home: Path, checkpoint: Path
    ) -> None:
        # given a finished copy with one byte turned
        store = prepare(checkpoint, home / "stores")
        broken = store.folder / "decoder-000.safetensors"
        others = {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()}
        data = bytearray(broken.read_bytes())
        data[-1] ^= 1
        broken.write_bytes(data)
        # when it is repaired
        assert self.outcome(tgp) == []  # nobody asked to read every byte
        dry = self.outcome(tgp, "--stores", "--dry-run")
        assert dry == [("damaged_store", "would be mended")]
        assert store.folder.exists()
        assert self.outcome(tgp, "--stores") == [("damaged_store", "mended")]
        # then the next load makes that file again and no other
        again = prepare(checkpoint, home / "stores")
        assert not again.was_there
        assert self.outcome(tgp, "--stores") == []
        kept = [path for path in again.folder.iterdir() if path.suffix == ".safetensors"]
        assert [path.name for path in kept if path.stat().st_mtime_ns != others[path.name]] == [
            broken.name
        ]

    def test_an_incomplete_copy_is_deleted_if_that_is_asked_for(self, tgp: Tgp, home: Path) -> None:
        left = home / "stores" / "other-0123456789.partial"
        left.mkdir(parents=True)
        checks = json.loads(tgp("doctor", "--json").stdout)["checks"]
        (told,) = [each for each in checks if each["name"] == "stores"]
        assert told["status"] == "warn"
        assert told["detail"] == f"incomplete, and no process is working on it: {left.name}"
        # when nobody asked for it, it is kept: the next load goes on with it
        assert self.outcome(tgp) == []
        assert left.exists()
        assert self.outcome(tgp, "--stores") == [("incomplete_store", "mended")]
        assert not left.exists()
        assert self.outcome(tgp, "--stores") == []

    def test_a_copy_that_is_being_made_is_left_alone(self, tgp: Tgp, home: Path) -> None:
        making = home / "stores" / "mine-0123456789.partial"
        making.mkdir(parents=True)
        with store_lock(making, on_wait=lambda: None, should_stop=never):
            assert self.outcome(tgp, "--stores") == []
        assert self.outcome(tgp, "--stores") == [("incomplete_store", "mended")]
