"""`doctor` finds and `repair` mends what operators meet; each state is broken for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from engine.store.lock import store_lock
from jobs.database import Database
from jobs.dispatch import Dispatcher, queue_name
from jobs.models import database_now, jobs, shards
from jobs.settings import Settings
from jobs.store import control, leases, publishing, recovery
from jobs.store.reading import job_report
from jobs.store.workers import register_worker, worker_stopped
from tests.acceptance.box import Box
from tests.acceptance.conftest import box, short_folder
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
from tests.services import RealRedis
from tests.stores import never, prepare
from tests.tiny_checkpoints import save_random_checkpoint
from tests.unit.cli.conftest import Tgp, tgp
from tests.unit.cli.test_doctor import _no_torch_is_imported

__all__ = ["_no_torch_is_imported", "box", "short_folder", "tgp"]

pytestmark = pytest.mark.integration

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def repair(tgp: Tgp, database_settings: Settings, real_redis: RealRedis) -> Run:
    """`tgp-jobs repair --json` on the test's ledger and Redis; it must end well or be a dry run."""

    def run(*options: str) -> dict[str, Any]:
        urls = ["--redis-url", real_redis.url]
        urls += ["--database-url", database_settings.effective_database_url]
        done = tgp("repair", "--json", *urls, *options)
        document: dict[str, Any] = json.loads(done.stdout)
        assert done.exit_code == (0 if document["ok"] else 1)
        assert done.stderr == ""
        return document

    return run


@pytest.fixture
def dispatcher(database_settings: Settings, real_redis: RealRedis) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(Settings(home=database_settings.home, redis_url=real_redis.url))
    yield dispatcher
    dispatcher.close()


def kinds(document: dict[str, Any], outcome: str) -> list[str]:
    assert {fault["outcome"] for fault in document["faults"]} <= {outcome}
    return sorted(fault["kind"] for fault in document["faults"])


def assert_mended(repair: Run, kind: str) -> None:
    """A dry run finds it and changes nothing, a run mends it, the next finds nothing."""
    expected = Counter({kind: 1})
    for _ in range(2):
        dry = repair("--dry-run")
        assert Counter(kinds(dry, "would be mended"))[kind] == expected[kind]
        assert dry["ok"] is False
    assert Counter(kinds(repair(), "mended"))[kind] == expected[kind]
    assert repair() == {"ok": True, "dry_run": False, "faults": [], "unchecked": {}}


def assert_whole(database: Database, job_id: str, total: int) -> None:
    """The job can be run to its end, and each prompt has one result."""
    run_job(database, job_id)
    report = job_report(database, job_id)
    assert (report.status, report.completed, report.pending) == ("completed", total, 0)
    assert sorted(results_of(database, job_id)) == list(range(total))


class TestLeases:
    def test_a_lease_that_ran_out_is_taken_back(self, database: Database, repair: Run) -> None:
        held = submit_and_claim(database, 8)
        record(database, held, [0])
        expire_lease(database, held.shard_id)
        assert_mended(repair, "orphaned_lease")
        assert shard(database, held.shard_id).crashes == 1
        # and the old owner is refused from then on
        assert not leases.renew_lease(database, held, 60)
        assert_whole(database, held.job_id, 8)

    def test_a_shard_of_a_worker_that_has_ended_is_taken_back(
        self, database: Database, repair: Run
    ) -> None:
        register_worker(
            database, worker_id="worker-a", hostname="h", process=1, version="1", models=[]
        )
        held = submit_and_claim(database)
        worker_stopped(database, "worker-a")
        assert_mended(repair, "orphaned_lease")
        assert_whole(database, held.job_id, 4)

    def test_a_running_shard_without_a_lease_which_no_sweep_finds(
        self, database: Database, repair: Run
    ) -> None:
        held = submit_and_claim(database)
        with database.write() as connection:
            connection.execute(update(shards).values(lease_owner=None, lease_expires_at=None))
        assert recovery.requeue_expired(database) == []
        assert_mended(repair, "orphaned_lease")
        assert_whole(database, held.job_id, 4)

    def test_a_living_worker_s_shard_is_left_alone(self, database: Database, repair: Run) -> None:
        held = submit_and_claim(database)
        register_worker(
            database, worker_id="worker-a", hostname="h", process=1, version="1", models=[]
        )
        assert repair()["faults"] == []
        work_through(database, held)
        assert job_report(database, held.job_id).status == "completed"


class TestMessages:
    def test_a_shard_whose_message_is_gone_gets_one(
        self, database: Database, repair: Run, dispatcher: Dispatcher, real_redis: RealRedis
    ) -> None:
        # given three shards with a message each, sent a while ago, and one message lost
        job_id = submit(database, 12)
        dispatcher.publish_unpublished(database)
        age_messages(database)
        with real_redis.client() as client:
            assert client.lpop(f"{queue_name('tiny-bloom')}\x06\x165") is not None
        assert_mended(repair, "no_message")
        assert dispatcher.queue_length("tiny-bloom") == 3
        assert dispatcher.unheard_shards(database, -1) == []
        assert_whole(database, job_id, 12)

    def test_a_shard_that_never_had_a_message_gets_one(
        self, database: Database, repair: Run, dispatcher: Dispatcher
    ) -> None:
        submit(database, 4)
        with database.write() as connection:
            connection.execute(update(shards).values(created_at=database_now(-60)))
        assert_mended(repair, "no_message")
        assert dispatcher.queue_length("tiny-bloom") == 1

    def test_messages_of_all_priorities_and_foreign_ones_are_read(
        self, database: Database, repair: Run, dispatcher: Dispatcher, real_redis: RealRedis
    ) -> None:
        for priority in ("high", "normal", "low"):
            submit(database, 4, priority=priority)
        dispatcher.publish_unpublished(database)
        age_messages(database)
        with real_redis.client() as client:
            for foreign in ("no JSON", "[]", "{}", '{"body": "*"}', '{"body": "W10="}', "1"):
                client.lpush(queue_name("tiny-bloom"), foreign)
        assert repair()["faults"] == []

    def test_a_message_that_was_just_taken_is_not_sent_again(
        self, database: Database, repair: Run, dispatcher: Dispatcher, real_redis: RealRedis
    ) -> None:
        submit(database, 4)
        dispatcher.publish_unpublished(database)
        age_messages(database)
        from jobs.dispatch import new_connection

        with new_connection(Settings(home=Path("/"), redis_url=real_redis.url)) as connection:
            channel = connection.channel()
            assert channel.basic_get(queue_name("tiny-bloom")) is not None  # not acknowledged
            assert repair()["faults"] == []
            channel.close()


def age_messages(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(shards).values(published_at=database_now(-60)))


def set_status(database: Database, job_id: str, status: str) -> None:
    with database.write() as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(status=status))


class TestJobs:
    def test_a_job_with_all_results_that_still_runs(self, database: Database, repair: Run) -> None:
        job_id = submit(database, 8)
        run_job(database, job_id)
        set_status(database, job_id, "running")
        assert_mended(repair, "wrong_job_status")
        assert_whole(database, job_id, 8)

    def test_a_completed_job_with_a_shard_left_over(self, database: Database, repair: Run) -> None:
        job_id = submit(database, 8)
        work_through(database, claim(database, shard_ids(database, job_id)[0]))
        set_status(database, job_id, "completed")
        assert_mended(repair, "wrong_job_status")
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
        assert_mended(repair, "wrong_job_status")
        assert_whole(database, job_id, 8)

    def test_a_completed_job_whose_counts_are_wrong(self, database: Database, repair: Run) -> None:
        job_id = submit(database, 8)
        run_job(database, job_id)
        with database.write() as connection:
            connection.execute(update(shards).values(completed_prompts=0))
        assert_mended(repair, "wrong_job_status")
        assert_whole(database, job_id, 8)

    @pytest.mark.parametrize("status", ["failed", "cancelled"])
    def test_an_ended_job_with_shards_that_are_open(
        self, database: Database, repair: Run, status: str
    ) -> None:
        held = submit_and_claim(database, 8)
        set_status(database, held.job_id, status)
        assert_mended(repair, "wrong_job_status")
        assert job_report(database, held.job_id).status == status
        assert {shard(database, each).status for each in shard_ids(database, held.job_id)} == {
            status
        }

    def test_a_queued_job_with_a_running_shard(self, database: Database, repair: Run) -> None:
        held = submit_and_claim(database, 8)
        set_status(database, held.job_id, "queued")
        assert_mended(repair, "wrong_job_status")
        work_through(database, held)
        assert_whole(database, held.job_id, 8)

    def test_a_running_job_whose_shards_have_all_failed(
        self, database: Database, repair: Run
    ) -> None:
        held = submit_and_claim(database, 8)
        record(database, held, [1])
        leases.fail_job(database, held, code="model_load_failed", message="x")
        set_status(database, held.job_id, "running")
        assert_mended(repair, "wrong_job_status")
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


def test_a_redis_that_is_down_is_told_and_the_rest_mended(
    tgp: Tgp, database: Database, database_settings: Settings
) -> None:
    held = submit_and_claim(database)
    expire_lease(database, held.shard_id)
    url = ("--database-url", database_settings.effective_database_url)
    done = tgp("repair", "--json", *url, "--redis-url", "redis://:hunter2@127.0.0.1:1/0")
    document = json.loads(done.stdout)
    assert done.exit_code == 1
    assert kinds(document, "mended") == ["orphaned_lease"]
    assert list(document["unchecked"]) == ["messages"]
    assert "hunter2" not in done.output


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
    held = submit_and_claim(sqlite_database, 8)
    expire_lease(sqlite_database, held.shard_id)
    finished = submit(sqlite_database, 4)
    run_job(sqlite_database, finished)
    set_status(sqlite_database, finished, "running")

    def found() -> dict[str, str]:
        checks = json.loads(tgp("doctor", "--json").stdout)["checks"]
        return {each["name"]: each["status"] for each in checks if each["name"] in NAMES}

    assert found() == {"leases": "warn", "jobs": "fail", "stores": "ok"}
    assert tgp("repair").exit_code == 0
    assert found() == {"leases": "ok", "jobs": "ok", "stores": "ok"}


NAMES = ("leases", "jobs", "stores", "embedded redis", "messages")


def test_people_are_told_what_was_done(tgp: Tgp, sqlite_database: Database) -> None:
    assert tgp("repair").stdout == "nothing is broken\n"
    held = submit_and_claim(sqlite_database)
    expire_lease(sqlite_database, held.shard_id)
    dry = tgp("repair", "--dry-run")
    assert dry.exit_code == 1
    assert "would be mended" in dry.stdout
    assert "its lease ran out" in dry.stdout
    done = tgp("repair")
    assert done.exit_code == 0
    assert f"shard {held.shard_id} of job {held.job_id}" in done.stdout
    assert "queue it again" in done.stdout


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint("tiny-bloom", tmp_path_factory.mktemp("checkpoint"))


class TestStores:
    def outcome(self, tgp: Tgp, *options: str) -> list[tuple[str, str]]:
        document = json.loads(tgp("repair", "--json", *options).stdout)
        return [(fault["kind"], fault["outcome"]) for fault in document["faults"]]

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

    def test_a_half_made_copy_is_kept_unless_it_is_no_use(
        self, tgp: Tgp, home: Path, checkpoint: Path
    ) -> None:
        store = prepare(checkpoint, home / "stores")
        resumable = store.folder.rename(f"{store.folder}.partial")
        useless = home / "stores" / "other-0123456789.partial"
        useless.mkdir()
        (useless / "tgp_store.json").write_text('{"orig')
        checks = json.loads(tgp("doctor", "--json").stdout)["checks"]
        (told,) = [each for each in checks if each["name"] == "stores"]
        assert told["status"] == "warn"
        assert resumable.name in told["detail"]
        assert self.outcome(tgp) == [("half_made_store", "mended")]
        assert (useless.exists(), resumable.exists()) == (False, True)
        assert self.outcome(tgp, "--stores") == [("half_made_store", "mended")]
        assert not resumable.exists()
        assert self.outcome(tgp, "--stores") == []

    def test_a_copy_that_is_being_made_is_left_alone(self, tgp: Tgp, home: Path) -> None:
        making = home / "stores" / "mine-0123456789.partial"
        making.mkdir(parents=True)
        with store_lock(
            making.with_name("mine-0123456789.lock"), on_wait=lambda: None, should_stop=never
        ):
            assert self.outcome(tgp, "--stores") == []
        assert self.outcome(tgp, "--stores") == [("half_made_store", "mended")]


class TestEmbeddedRedis:
    """With real workers and their real Redis."""

    def faults(self, box: Box, *options: str, exit_code: int = 0) -> list[tuple[str, str, str]]:
        done = box.run("repair", "--json", *options, exit_code=exit_code)
        return [
            (fault["kind"], fault["found"], fault["outcome"])
            for fault in json.loads(done.stdout)["faults"]
        ]

    def test_a_redis_in_use_is_left_alone_and_one_left_over_is_stopped(self, box: Box) -> None:
        box.catalogue('[models.null]\nengine = "null"\n')
        worker = box.worker("--model", "null")
        assert self.faults(box) == []
        process = redis_process(box)
        worker.kill()
        ((kind, found, outcome),) = self.faults(box, "--dry-run", exit_code=1)
        assert (kind, outcome) == ("stale_redis", "would be mended")
        assert f"no worker uses, process {process}" in found
        assert [each[2] for each in self.faults(box)] == ["mended"]
        assert has_ended(process)
        assert self.faults(box) == []
        # and the next worker finds its queue
        job_id = box.submit(box.prompts(["a b"]), "null")
        box.worker("--model", "null")
        assert box.wait_for_end(job_id)["counts"]["completed"] == 1

    def test_a_redis_that_does_not_answer_is_killed(self, box: Box) -> None:
        box.catalogue('[models.null]\nengine = "null"\n')
        box.worker("--model", "null").kill()
        process = redis_process(box)
        os.kill(process, signal.SIGSTOP)
        assert [each[2] for each in self.faults(box)] == ["mended"]
        assert self.faults(box) == []
        box.worker("--model", "null")

    def test_the_socket_of_a_dead_server_is_removed(self, box: Box) -> None:
        box.catalogue('[models.null]\nengine = "null"\n')
        box.worker("--model", "null").kill()
        os.kill(redis_process(box), signal.SIGKILL)
        time.sleep(0.2)
        socket = box.home / "redis" / "redis.sock"
        assert socket.exists()
        assert [each[1:] for each in self.faults(box)] == [
            ("a socket whose server is gone", "mended")
        ]
        assert not socket.exists()
        assert self.faults(box) == []


def has_ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # where nobody collects orphans


def redis_process(box: Box) -> int:
    shown = subprocess.run(
        ["grep", "-oP", r"embedded_redis_started.*process=\K\d+", box.workers[-1].log_file],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(shown.stdout)


def test_publishing_certain_shards_takes_those_that_are_queued(database: Database) -> None:
    held = submit_and_claim(database, 8)
    other = shard_ids(database, held.job_id)[1]
    taken = publishing.take_these(database, [held.shard_id, other])
    assert [each.shard_id for each in taken] == [other]
