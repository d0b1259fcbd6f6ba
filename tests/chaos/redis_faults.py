"""A Redis that dies, forgets, is slow or cannot be reached."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.chaos.fault import fault
from tests.chaos.process_faults import while_generating
from tests.chaos.run import PROMPTS, Run
from tests.chaos.stage import SWEEP_SECONDS, Needs

FORGETFUL = Needs(redis="forgetful")
PROXIED = Needs(redis="proxied")
# A job of many short shards, so that most of its time is Redis'.
SHORT_SHARDS = 2


def until_celery_tries_again(outage_seconds: float) -> float:
    """The most that is left of Celery's pause when Redis is back: 2 s, 4, 6, up to 30."""
    pause, waited = 2.0, 0.0
    while waited + pause < outage_seconds:
        waited, pause = waited + pause, min(pause + 2.0, 30.0)
    return pause


def kill_and_start(run: Run) -> None:
    assert run.stage.redis is not None
    job = while_generating(run)
    run.strike(job, "queued")
    began = time.monotonic()
    run.stage.redis.kill()
    run.pause(1.0)
    run.stage.redis.start()
    run.mended(job)
    run.allowance_seconds += until_celery_tries_again(time.monotonic() - began)


@fault("Redis killed and started again, with its append-only file")
def redis_restarted(run: Run) -> None:
    kill_and_start(run)


@fault("Redis killed and started again, empty", FORGETFUL)
def redis_restarted_empty(run: Run) -> None:
    kill_and_start(run)


@fault("FLUSHALL in mid-job")
def flushed(run: Run) -> None:
    assert run.stage.redis is not None
    job = while_generating(run)
    run.strike(job, "queued")
    with run.stage.redis.client() as client:
        client.flushall()


@fault("Redis down at submit")
def down_at_submit(run: Run) -> None:
    assert run.stage.redis is not None
    began = time.monotonic()
    run.stage.redis.kill()
    run.pause(0.5)
    job = run.submit("steady")
    run.pause(0.5)
    run.stage.redis.start()
    run.mended(job)
    run.allowance_seconds += until_celery_tries_again(time.monotonic() - began)


@fault("Redis 50 to 200 ms away", PROXIED)
def slow(run: Run) -> None:
    assert run.stage.proxy is not None
    run.stage.proxy.delay_seconds = run.random.uniform(0.025, 0.1)
    try:
        run.wait_for_end(run.submit("steady", shard_size=SHORT_SHARDS * 4))
    finally:
        run.stage.proxy.delay_seconds = 0.0


@fault("Redis' connections cut three times", PROXIED)
def cut(run: Run) -> None:
    assert run.stage.proxy is not None
    job = run.submit("steady", PROMPTS, shard_size=SHORT_SHARDS)
    run.wait_until_some_are_begun(job, most_share=0.5)
    for _ in range(3):
        run.stage.proxy.cut()
        run.pause(0.5)
    run.mended(job)


@fault("the embedded Redis killed", Needs(redis="embedded"))
def embedded_killed(run: Run) -> None:
    job = while_generating(run)
    run.strike(job, "queued")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"redis-server" in command and str(run.stage.home).encode() in command:
            os.kill(int(process.name), signal.SIGKILL)
    # It is down until the next sweep at most.
    run.allowance_seconds += until_celery_tries_again(SWEEP_SECONDS)
