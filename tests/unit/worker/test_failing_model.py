"""A model that fails with every prompt fails its job once, and no prompt alone."""

from __future__ import annotations

import pytest

from engine.interface import GenerationRequest
from jobs.store import leases, reading
from tests.ledger import submit
from tests.unit.worker.bench import Bench
from worker.shards.held_shard import KEYS_PER_SHARD


def work_through(bench: Bench, job_id: str) -> None:
    while (shard_id := leases.next_shard_of(bench.database, job_id)) is not None:
        bench.runner().run(shard_id)


@pytest.mark.parametrize("prompts", [4, 40])
def test_a_model_whose_every_forward_fails_fails_its_job_with_the_error(
    bench: Bench, prompts: int
) -> None:
    def fail(row: int) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    bench.engine.rows, bench.engine.before_row = 4, fail
    job_id = submit(bench.database, prompts)
    work_through(bench, job_id)
    report = reading.job_report(bench.database, job_id)
    assert report.status == "failed"
    assert "shapes cannot be multiplied" in str(report)
    assert bench.loader.loads <= 3 * bench.settings.max_crashes


def test_one_prompt_that_fails_every_batch_fails_alone(bench: Bench) -> None:
    def answer(request: GenerationRequest) -> str:
        if request.key % KEYS_PER_SHARD == 3:
            raise RuntimeError("shapes cannot be multiplied")
        return "here"

    bench.engine.rows, bench.engine.answer = 4, answer
    job_id = submit(bench.database, 4)
    work_through(bench, job_id)
    assert reading.job_report(bench.database, job_id).status == "completed"
    assert bench.texts(job_id) == ["here", "here", "here", None]
