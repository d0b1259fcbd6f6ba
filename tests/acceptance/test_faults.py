"""What tests/chaos does not play: stops, retries and other ways to start a worker."""

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


def test_no_process_is_left_behind(box: Box) -> None:
    worker = box.worker("--model", "tiny-bloom")

    assert worker.stop() == 0

    output = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(box.home) not in output.stdout
