"""A real worker lets shards share its batches, and nobody pays for it."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Any

import pytest

from tests.acceptance.box import Box

pytestmark = pytest.mark.acceptance
PROMPTS = [f"prompt number {number}" for number in range(96)]


def assert_complete(box: Box, job_id: str, prompts: list[str]) -> None:
    """Every prompt has exactly one result, in input order, and it is its own."""
    lines = box.results(job_id)
    assert Counter(line["index"] for line in lines) == Counter(range(len(prompts)))
    assert [line["completion"] for line in lines] == [
        " ".join(prompt.split()[-4:]) for prompt in prompts
    ]


def steps_of(status: dict[str, Any]) -> tuple[int, float]:
    return status["steps"]["count"], status["steps"]["mean_rows"]


def test_the_tail_of_a_shard_shares_a_batch_with_the_head_of_the_next(any_box: Box) -> None:
    # given four shards of 24, of a model with 16 rows
    any_box.catalogue('[models.slow]\nengine = "null"\nmicro_batch_seconds = 0.1\n')
    job_id = any_box.submit(any_box.prompts(PROMPTS), "slow", "--shard-size", "24")

    any_box.worker("--model", "slow")
    status = any_box.wait_for_end(job_id)

    # then six full batches did, where shards by themselves take eight
    assert status["status"] == "completed"
    assert steps_of(status) == (6, 16.0)
    assert status["shards"] == {"total": 4, "completed": 4}
    assert_complete(any_box, job_id, PROMPTS)


def test_shards_by_themselves_leave_rows_empty(box: Box) -> None:
    # So that the test above can fail.
    box.environment["TGP_SHARDS_AT_ONCE"] = "1"
    box.catalogue('[models.slow]\nengine = "null"\n')
    job_id = box.submit(box.prompts(PROMPTS), "slow", "--shard-size", "24")

    box.worker("--model", "slow")

    assert steps_of(box.wait_for_end(job_id)) == (8, 12.0)


def test_a_killed_child_loses_nothing_of_either_shard(any_box: Box) -> None:
    any_box.catalogue('[models.slow]\nengine = "null"\nmicro_batch_seconds = 0.5\n')
    job_id = any_box.submit(any_box.prompts(PROMPTS), "slow", "--shard-size", "24")
    worker = any_box.worker("--model", "slow")
    worker.wait_for("shard_started", 2)  # the second has joined the first

    os.kill(worker.child, signal.SIGKILL)

    assert any_box.wait_for_end(job_id)["counts"]["completed"] == len(PROMPTS)
    assert_complete(any_box, job_id, PROMPTS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_stop_gives_both_shards_back(box: Box, number: int) -> None:
    box.catalogue('[models.slow]\nengine = "null"\nmicro_batch_seconds = 0.5\n')
    job_id = box.submit(box.prompts(PROMPTS), "slow", "--shard-size", "24")
    worker = box.worker("--model", "slow")
    worker.wait_for("shard_started", 2)

    assert worker.stop(number) == 0

    assert worker.log.count("shard_given_back") == 2
    assert box.status(job_id)["counts"]["completed"] < len(PROMPTS)
    box.worker("--model", "slow")
    assert box.wait_for_end(job_id)["status"] == "completed"
    assert_complete(box, job_id, PROMPTS)


def test_no_innocent_shard_pays_for_a_prompt_that_kills_the_worker(box: Box) -> None:
    # given shards of one prompt, several in a batch, and no second chance
    box.catalogue('[models.bomb]\nengine = "null"\ncrash_on = "boom"\n')
    box.environment |= {"TGP_MAX_CRASHES": "1", "TGP_SHARDS_AT_ONCE": "4"}
    prompts = ["one", "two", "boom", "four", "five", "six"]
    job_id = box.submit(box.prompts(prompts), "bomb", "--shard-size", "1")

    worker = box.worker("--model", "bomb")
    status = box.wait_for_end(job_id)

    assert status["counts"] == {"total": 6, "completed": 5, "failed": 1, "pending": 0}
    (failed,) = box.results(job_id, "--failed")
    assert (failed["index"], failed["error"]["code"]) == (2, "worker_crashed")
    assert worker.log.count("WorkerLostError") >= 2  # once beside others, once alone


def test_a_chain_of_shards_gives_way_to_another_model(box: Box) -> None:
    # given a job whose shards join each other for 34 batches of 0.1 s, and another model's
    box.catalogue(
        '[models.long]\nengine = "null"\nmicro_batch_seconds = 0.1\n'
        '[models.short]\nengine = "null"\n'
    )
    box.environment["TGP_STICKY_SECONDS"] = "1"
    prompts = [f"prompt number {number}" for number in range(34 * 16)]
    long = box.submit(box.prompts(prompts), "long", "--shard-size", "17")
    short = box.submit(box.prompts(PROMPTS[:2]), "short")

    box.worker("--model", "long", "--model", "short")
    ends = {model: box.wait_for_end(job) for model, job in (("short", short), ("long", long))}

    # then the other had its turn in the middle, and rows were shared all the same
    assert ends["short"]["finished_at"] < ends["long"]["finished_at"]
    assert ends["long"]["started_at"] < ends["short"]["started_at"]
    assert ends["long"]["steps"]["mean_rows"] > 15
    assert_complete(box, long, prompts)


def test_run_lets_shards_share_batches_too(box: Box) -> None:
    box.catalogue('[models.slow]\nengine = "null"\n')

    done = box.run("run", box.prompts(PROMPTS), "--model", "slow", "--shard-size", "24")

    (job_id,) = {line.split()[1].rstrip(":") for line in done.stderr.splitlines() if "job " in line}
    assert steps_of(box.status(job_id)) == (6, 16.0)
    assert done.stdout.count("\n") == len(PROMPTS)
