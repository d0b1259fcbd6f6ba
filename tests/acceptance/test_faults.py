"""What is submitted is neither lost nor done twice, whatever breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.box import Box, Worker, wait_until
from tests.services import RealRedis

pytestmark = pytest.mark.acceptance
SLOW = '[models.slow]\nengine = "null"\nmicro_batch_seconds = 0.3\n'
PROMPTS = [f"prompt number {number}" for number in range(96)]


def assert_complete(box: Box, job_id: str) -> None:
    """Every prompt has exactly one result, and it is its own."""
    lines = box.results(job_id)
    assert Counter(line["index"] for line in lines) == Counter(range(len(PROMPTS)))
    assert [line["completion"] for line in lines] == [
        " ".join(prompt.split()[-4:]) for prompt in PROMPTS
    ]


def start_job(
    box: Box, *, micro_batch_seconds: float = 0.3, shard_size: int = 48
) -> tuple[str, Worker]:
    """A job of which some prompts are done and some are not."""
    box.catalogue(f'[models.slow]\nengine = "null"\nmicro_batch_seconds = {micro_batch_seconds}\n')
    worker = box.worker("--model", "slow")
    job_id = box.submit(box.prompts(PROMPTS), "slow", "--shard-size", str(shard_size))
    worker.wait_for(" micro_batch ")
    return job_id, worker


def test_a_killed_child_is_replaced_and_its_shard_taken_up(any_box: Box) -> None:
    job_id, worker = start_job(any_box)

    os.kill(worker.child, signal.SIGKILL)

    assert any_box.wait_for_end(job_id)["counts"]["completed"] == len(PROMPTS)
    assert_complete(any_box, job_id)
    assert worker.process.poll() is None


def test_a_killed_worker_s_shard_goes_to_the_next_one(any_box: Box) -> None:
    job_id, worker = start_job(any_box)

    child = worker.child
    worker.kill()
    any_box.worker("--model", "slow")

    assert any_box.wait_for_end(job_id)["counts"]["completed"] == len(PROMPTS)
    assert_complete(any_box, job_id)
    wait_until(lambda: not Path(f"/proc/{child}").exists(), "the orphaned child's end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_stop_puts_the_rest_back(box: Box, number: int) -> None:
    job_id, worker = start_job(box, shard_size=len(PROMPTS))

    assert worker.stop(number) == 0
    status = box.status(job_id)

    assert "shard_given_back" in worker.log
    assert 0 < status["counts"]["completed"] < len(PROMPTS)
    box.worker("--model", "slow")
    assert box.wait_for_end(job_id)["status"] == "completed"
    assert_complete(box, job_id)


def test_a_second_signal_does_not_wait_for_the_step(box: Box) -> None:
    box.catalogue('[models.stuck]\nengine = "null"\nmicro_batch_seconds = 3600\n')
    worker = box.worker("--model", "stuck")
    box.submit(box.prompts(PROMPTS), "stuck")
    worker.wait_for("shard_started")
    # A child that hears nothing stands for a decode step that takes for ever.
    os.kill(worker.child, signal.SIGSTOP)

    started = time.monotonic()
    worker.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    worker.process.send_signal(signal.SIGTERM)
    worker.process.wait(30)

    assert time.monotonic() - started < 15


def test_several_workers_share_a_job(postgres_box: Box) -> None:
    postgres_box.catalogue(SLOW)
    workers = [postgres_box.worker("--model", "slow") for _ in range(2)]

    job_id = postgres_box.submit(postgres_box.prompts(PROMPTS), "slow", "--shard-size", "16")

    assert postgres_box.wait_for_end(job_id)["status"] == "completed"
    assert_complete(postgres_box, job_id)
    assert all("shard_generated" in worker.log for worker in workers)


def test_a_flushed_redis_costs_time_only(postgres_box: Box, real_redis: RealRedis) -> None:
    job_id, _worker = start_job(postgres_box)

    with real_redis.client() as client:
        client.flushall()

    assert postgres_box.wait_for_end(job_id)["status"] == "completed"
    assert_complete(postgres_box, job_id)


def test_submit_succeeds_without_redis_and_says_so(
    postgres_box: Box, real_redis: RealRedis
) -> None:
    postgres_box.catalogue(SLOW)
    real_redis.kill()

    done = postgres_box.run("submit", postgres_box.prompts(PROMPTS), "--model", "slow")
    job_id = done.stdout.strip()
    real_redis.start()
    postgres_box.worker("--model", "slow")

    assert "Redis" in done.stderr
    assert postgres_box.wait_for_end(job_id)["status"] == "completed"
    assert_complete(postgres_box, job_id)


def test_a_prompt_that_kills_the_worker_fails_alone(box: Box) -> None:
    box.catalogue('[models.bomb]\nengine = "null"\ncrash_on = "boom"\n')
    box.environment["TGP_MAX_CRASHES"] = "2"
    box.environment["TGP_MICRO_BATCH_ROWS"] = "4"
    box.worker("--model", "bomb")

    file = box.prompts(["one", "two", "three", "boom", "five", "six", "seven", "eight"])
    job_id = box.submit(file, "bomb")
    status = box.wait_for_end(job_id)

    assert status["status"] == "completed"
    assert status["counts"] == {"total": 8, "completed": 7, "failed": 1, "pending": 0}
    (failed,) = box.results(job_id, "--failed")
    assert (failed["index"], failed["error"]["code"]) == (3, "worker_crashed")


def test_a_model_that_cannot_load_fails_its_job_and_no_other(box: Box) -> None:
    box.catalogue(f'[models.broken]\nfolder = "nowhere"\n{SLOW}')
    worker = box.worker("--model", "broken", "--model", "slow")

    broken = box.submit(box.prompts(PROMPTS), "broken")
    good = box.submit(box.prompts(PROMPTS), "slow")

    status = box.wait_for_end(broken)
    assert status["status"] == "failed"
    assert status["error"]["code"] == "model_load_failed"
    assert "nowhere" in status["error"]["message"]
    assert box.wait_for_end(good)["status"] == "completed"
    assert worker.process.poll() is None


def test_cancel_stops_a_running_job_and_keeps_what_is_done(box: Box) -> None:
    # One long shard, so that the cancel cannot fall between two.
    job_id, worker = start_job(box, micro_batch_seconds=3.0, shard_size=len(PROMPTS))

    box.run("cancel", job_id)
    worker.wait_for("shard_lost")
    status = box.status(job_id)

    assert status["status"] == "cancelled"
    assert 0 < status["counts"]["completed"] < len(PROMPTS)
    assert len(box.results(job_id)) == status["counts"]["completed"]


def test_retry_runs_only_what_failed(box: Box) -> None:
    box.catalogue('[models.bomb]\nengine = "null"\ncrash_on = "boom"\n')
    box.environment["TGP_MAX_CRASHES"] = "1"
    worker = box.worker("--model", "bomb")
    job_id = box.submit(box.prompts(["one", "boom"]), "bomb")
    assert box.wait_for_end(job_id)["counts"]["failed"] == 1
    worker.stop()
    box.catalogue('[models.bomb]\nengine = "null"\n')
    box.worker("--model", "bomb")

    box.run("retry", job_id)

    assert box.wait_for_end(job_id)["counts"]["completed"] == 2
    assert [line["completion"] for line in box.results(job_id)] == ["one", "boom"]


def test_a_foreign_message_is_dropped_and_the_worker_goes_on(
    postgres_box: Box, real_redis: RealRedis
) -> None:
    from celery import Celery

    postgres_box.catalogue(SLOW)
    worker = postgres_box.worker("--model", "slow")
    app = Celery(broker=real_redis.url, set_as_current=False)
    for name, arguments in (("tgp.run_shard", ["x; DROP"]), ("os.system", ["true"])):
        app.send_task(name, args=arguments, queue="tgp.slow", serializer="json")
    app.close()

    job_id = postgres_box.submit(postgres_box.prompts(PROMPTS), "slow")

    assert postgres_box.wait_for_end(job_id)["status"] == "completed"
    assert "message_dropped" in worker.log
    assert worker.process.poll() is None


def test_plain_celery_starts_the_same_worker(box: Box) -> None:
    box.catalogue(SLOW)
    celery = Path(sys.executable).parent / "celery"
    log = box.home / "celery.log"
    worker = Worker(
        [str(celery), "-A", "worker.celery_app", "worker", "--loglevel", "INFO"],
        box.environment,
        log,
    )
    box.workers.append(worker)
    worker.wait_for("worker_ready")

    job_id = box.submit(box.prompts(PROMPTS[:8]), "slow")

    assert box.wait_for_end(job_id)["status"] == "completed"


def test_an_interrupted_run_can_be_resumed(box: Box) -> None:
    # given batches that take longer than it takes to ask and to interrupt
    box.catalogue(SLOW.replace("0.3", "4"))
    running = box.start("run", box.prompts(PROMPTS), "--model", "slow", "--micro-batch-rows", "16")
    try:
        listing = wait_until(lambda: box.run("list", "--json").stdout.strip("[]\n "), "the job")
        job_id = listing.split('"id": "')[1].split('"')[0]
        wait_until(lambda: box.status(job_id)["counts"]["completed"], "some results")
        running.send_signal(signal.SIGINT)
        _output, notes = running.communicate(timeout=30)
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()
    before = box.status(job_id)["counts"]["completed"]
    box.catalogue(SLOW)

    resumed = box.run("run", "--resume", job_id)

    assert 0 < before < len(PROMPTS)
    assert f"--resume {job_id}" in notes
    assert resumed.stdout.count("\n") == len(PROMPTS)
    assert_complete(box, job_id)


def test_the_state_directory_is_its_owner_s_only(short_folder: Path) -> None:
    box = Box(short_folder)
    box.environment["TGP_HOME"] = str(short_folder / "new")

    box.run("list")

    assert (short_folder / "new").stat().st_mode & 0o777 == 0o700


def test_no_process_is_left_behind(box: Box) -> None:
    worker = box.worker("--model", "tiny-bloom")

    assert worker.stop() == 0

    output = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(box.home) not in output.stdout
