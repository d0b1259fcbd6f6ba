"""Whatever happens to a shard, it is finished, given back, or somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from engine.interface import (
    ChatMessage,
    GenerationRequest,
    LoadInterruptedError,
    ModelLoadError,
    SamplingParameters,
)
from jobs.errors import DatabaseUnavailableError
from jobs.prompts.parameters import PromptRequest
from jobs.store import leases, reading, recording
from jobs.store.control import cancel_job
from jobs.store.results import result_rows
from jobs.store.submission import submit_job
from jobs.store.workers import live_workers
from tests.ledger import (
    claim,
    count_micro_batches,
    expire_lease,
    new_job,
    record,
    results_of,
    shard,
    shard_ids,
    submit,
    try_claim,
)
from tests.unit.worker.bench import Bench
from worker.shards import run_shard as run_shard_module
from worker.shards.requests import derived_seed


def test_a_shard_is_finished_with_a_result_for_each_prompt(bench: Bench) -> None:
    job_id = submit(bench.database)
    assert bench.run(job_id) == "finished"
    assert bench.texts(job_id) == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert reading.job_report(bench.database, job_id).status == "completed"
    assert count_micro_batches(bench.database) == 4


def test_the_null_engine_is_run_by_the_same_path(bench: Bench) -> None:
    job_id = submit(bench.database, model="null")
    assert bench.run(job_id) == "finished"
    assert bench.texts(job_id) == ["prompt 0", "prompt 1", "prompt 2", "prompt 3"]


def test_a_duplicate_message_is_let_go(bench: Bench) -> None:
    job_id = submit(bench.database)
    claim(bench.database, shard_ids(bench.database, job_id)[0], worker="another")
    assert bench.run(job_id) == "not ours"
    assert bench.loader.loads == 0


def test_a_stop_gives_the_shard_back_with_its_finished_rows(bench: Bench) -> None:
    # given a worker that is told to stop before its third row
    bench.engine.before_row = lambda row: bench.stop() if row == 2 else None
    job_id = submit(bench.database)
    assert bench.run(job_id) == "given back"
    # then two results stay, and the next worker need not wait
    assert results_of(bench.database, job_id) == [0, 1]
    (shard_id,) = shard_ids(bench.database, job_id)
    row = shard(bench.database, shard_id)
    assert (row.status, row.crashes, row.published_at) == ("queued", 0, None)


def test_results_that_are_there_are_not_generated_again(bench: Bench) -> None:
    # given a shard that another worker gave back half done
    job_id = submit(bench.database)
    held = claim(bench.database, shard_ids(bench.database, job_id)[0], worker="another")
    record(bench.database, held, [1, 2])
    leases.release_shard(bench.database, held)
    # when it is run
    assert bench.run(job_id) == "finished"
    # then the engine saw the rest only
    assert [request.key for request in bench.engine.seen] == [0, 3]
    assert bench.texts(job_id) == ["answer 0", "completion 1", "completion 2", "answer 3"]


def test_a_cancel_in_the_middle_ends_the_writing(bench: Bench) -> None:
    job_id = submit(bench.database)
    bench.engine.before_row = lambda row: cancel_job(bench.database, job_id) if row == 2 else None
    assert bench.run(job_id) == "lost"
    assert results_of(bench.database, job_id) == [0, 1]
    assert reading.job_report(bench.database, job_id).status == "cancelled"


def test_a_shard_that_was_taken_over_is_left_to_its_new_owner(bench: Bench) -> None:
    job_id = submit(bench.database)
    (shard_id,) = shard_ids(bench.database, job_id)

    def take_over(row: int) -> None:
        if row == 1:
            expire_lease(bench.database, shard_id)
            claim(bench.database, shard_id, worker="another")

    bench.engine.before_row = take_over
    assert bench.run(job_id) == "lost"
    assert results_of(bench.database, job_id) == [0]
    assert shard(bench.database, shard_id).lease_owner == "another"


def test_a_model_that_cannot_be_loaded_fails_its_job_with_the_reason(bench: Bench) -> None:
    bench.loader.raises = ModelLoadError("no config.json in /models/x")
    job_id = submit(bench.database, 8)
    assert bench.run(job_id) == "job failed"
    report = reading.job_report(bench.database, job_id)
    assert (report.status, report.error_code, report.error_message) == (
        "failed",
        "model_load_failed",
        "no config.json in /models/x",
    )


def test_weights_that_cannot_be_read_any_more_fail_the_job_and_are_let_go(bench: Bench) -> None:
    # given a file that breaks while it is streamed, after the first row
    def break_at(row: int) -> None:
        if row == 1:
            raise ModelLoadError("decoder-007.safetensors cannot be loaded (Input/output error)")

    bench.engine.before_row = break_at
    job_id = submit(bench.database)
    assert bench.run(job_id) == "job failed"
    report = reading.job_report(bench.database, job_id)
    assert report.status == "failed"
    assert "decoder-007.safetensors" in str(report.error_message)
    # then what was generated is kept, and the next job loads anew
    assert results_of(bench.database, job_id) == [0]
    assert bench.engine.closed == 1
    bench.engine.before_row = lambda row: None
    assert bench.run(submit(bench.database)) == "finished"


def test_a_worker_goes_on_after_a_failed_load(bench: Bench) -> None:
    bench.loader.raises = ModelLoadError("no")
    bench.run(submit(bench.database))
    bench.loader.raises = None
    assert bench.run(submit(bench.database)) == "finished"


def test_a_load_that_fails_after_a_cancel_leaves_the_job_cancelled(bench: Bench) -> None:
    # given a job that is cancelled while its model is being loaded in vain
    job_id = submit(bench.database)
    bench.loader.before = lambda: cancel_job(bench.database, job_id)
    bench.loader.raises = ModelLoadError("no")
    assert bench.run(job_id) == "lost"
    assert reading.job_report(bench.database, job_id).status == "cancelled"


def test_a_stop_while_loading_gives_the_shard_back(bench: Bench) -> None:
    bench.loader.before = bench.stop
    bench.loader.raises = LoadInterruptedError()
    job_id = submit(bench.database)
    assert bench.run(job_id) == "given back"
    (shard_id,) = shard_ids(bench.database, job_id)
    assert shard(bench.database, shard_id).status == "queued"


def crash_at(row_that_crashes: int) -> Callable[[int], None]:
    def before_row(row: int) -> None:
        if row == row_that_crashes:
            raise RuntimeError("CUDA error: \0 an illegal memory access")

    return before_row


def test_an_engine_that_breaks_counts_a_crash_and_is_freed(bench: Bench) -> None:
    bench.engine.before_row = crash_at(1)
    job_id = submit(bench.database)
    assert bench.run(job_id) == "crashed"
    (shard_id,) = shard_ids(bench.database, job_id)
    row = shard(bench.database, shard_id)
    assert (row.status, row.crashes, bench.engine.closed) == ("queued", 1, 1)
    assert row.last_error == (
        "RuntimeError: CUDA error: \N{REPLACEMENT CHARACTER} an illegal memory access"
    )
    assert results_of(bench.database, job_id) == [0]


def test_after_a_crash_the_model_is_loaded_anew(bench: Bench) -> None:
    bench.engine.before_row = crash_at(0)
    job_id = submit(bench.database)
    bench.run(job_id)
    bench.engine.before_row = lambda row: None
    assert bench.run(job_id) == "finished"
    assert bench.loader.loads == 2


def test_an_engine_that_cannot_even_be_freed_is_not_used_again(bench: Bench) -> None:
    # given an engine that breaks, and breaks again when it is closed
    def broken() -> None:
        raise RuntimeError("CUDA error")

    bench.engine.before_row = crash_at(0)
    bench.engine.on_close = broken
    job_id = submit(bench.database)
    assert bench.run(job_id) == "crashed"
    # then the shard is given back all the same, and the next run loads anew
    assert try_claim(bench.database, shard_ids(bench.database, job_id)[0], worker="x") is not None
    bench.engine.before_row = lambda row: None
    assert bench.run(submit(bench.database)) == "finished"
    assert bench.loader.loads == 2


def test_an_engine_that_forgets_a_prompt_does_not_finish_the_shard(bench: Bench) -> None:
    bench.engine.answer = lambda request: None if request.key == 2 else "here"
    job_id = submit(bench.database)
    assert bench.run(job_id) == "crashed"
    assert reading.job_report(bench.database, job_id).status == "running"
    assert results_of(bench.database, job_id) == [0, 1, 3]


def test_a_shard_that_keeps_crashing_is_cut_before_it_is_run_again(bench: Bench) -> None:
    bench.engine.before_row = crash_at(0)
    job_id = submit(bench.database)
    outcomes = [bench.run(job_id) for _ in range(4)]
    assert outcomes == ["crashed", "crashed", "crashed", "isolated"]
    assert len(shard_ids(bench.database, job_id)) == 2


def test_a_model_outside_the_catalogue_is_not_loaded(bench: Bench) -> None:
    job_id = submit(bench.database, model="somebody/evil")
    assert bench.run(job_id) == "given back"
    assert bench.loader.loads == 0
    row = shard(bench.database, shard_ids(bench.database, job_id)[0])
    assert (row.status, row.crashes) == ("queued", 0)


def test_a_model_is_loaded_once_for_many_shards(bench: Bench) -> None:
    job_id = submit(bench.database, 12)
    runner = bench.runner()
    assert {runner.run(shard_id) for shard_id in shard_ids(bench.database, job_id)} == {"finished"}
    assert bench.loader.loads == 1


def test_another_model_s_turn_frees_the_first(bench: Bench) -> None:
    bench.run(submit(bench.database))
    bench.run(submit(bench.database, model="tiny-flan"))
    assert (bench.loader.loads, bench.engine.closed) == (2, 1)
    (worker,) = live_workers(bench.database)
    assert worker.device == "cpu"


def test_the_line_s_parameters_go_before_the_job_s_and_those_before_the_defaults(
    bench: Bench,
) -> None:
    job = new_job(
        1, parameters={"temperature": 0.5, "top_k": 7, "stop": ["."], "eos_token_ids": []}
    )
    line = PromptRequest(
        line=1,
        custom_id=None,
        prompt="hello",
        messages=None,
        parameters={"temperature": 1.5, "seed": 3, "logprobs": 2, "echo": True},
    )
    bench.run(submit_job(bench.database, job, [line]).job_id)
    (request,) = bench.engine.seen
    assert request.parameters == SamplingParameters(
        max_new_tokens=128,
        min_new_tokens=0,
        temperature=1.5,
        top_p=1.0,
        top_k=7,
        repetition_penalty=1.0,
        stop=(".",),
        seed=3,
        eos_token_ids=(),
        logprobs=2,
        echo=True,
    )


def test_a_chat_reaches_the_engine_as_messages(bench: Bench) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    line = PromptRequest(line=1, custom_id=None, prompt=None, messages=messages, parameters={})
    bench.run(submit_job(bench.database, new_job(1), [line]).job_id)
    assert bench.engine.seen[0].prompt == (
        ChatMessage(role="system", content="be brief"),
        ChatMessage(role="user", content="hello"),
    )


def test_prompts_without_a_seed_get_one_of_their_own(bench: Bench) -> None:
    job_id = submit(bench.database)
    bench.run(job_id)
    seeds = [request.parameters.seed for request in bench.engine.seen]
    assert seeds == [derived_seed(job_id, index) for index in range(4)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_derived_seed_never_changes() -> None:
    # A figure written down, so that an upgrade cannot change what a job gives.
    assert derived_seed("abcd2345", 7) == 7_944_952_134_946_368_333


def test_a_prompt_whose_parameters_are_refused_fails_alone(bench: Bench) -> None:
    # given a line that an older version stored with what is refused now
    lines = [
        PromptRequest(line=1, custom_id=None, prompt="a", messages=None, parameters={}),
        PromptRequest(
            line=2, custom_id=None, prompt="b", messages=None, parameters={"temperature": 99}
        ),
    ]
    job_id = submit_job(bench.database, new_job(2), lines).job_id
    assert bench.run(job_id) == "finished"
    rows = list(result_rows(bench.database, job_id))
    assert [row.error_code for row in rows] == [None, "bad_parameter"]
    assert [request.key for request in bench.engine.seen] == [0]


def test_a_text_that_no_database_can_hold_is_made_fit(bench: Bench) -> None:
    bench.engine.answer = lambda request: "a\0b\ud800c"
    job_id = submit(bench.database, 1)
    assert bench.run(job_id) == "finished"
    assert bench.texts(job_id) == ["a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"]


def database_away(times: int, write: Callable[..., Any]) -> Callable[..., Any]:
    """The write, after so many failures."""
    left = [times]

    def call(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise DatabaseUnavailableError
        return write(*arguments, **named)

    return call


@pytest.mark.parametrize(
    ("module", "verb"), [(recording, "record_micro_batch"), (leases, "finish_shard")]
)
def test_finished_work_waits_for_a_database_that_is_away(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, module: ModuleType, verb: str
) -> None:
    monkeypatch.setattr(run_shard_module, "DATABASE_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(module, verb, database_away(3, getattr(module, verb)))
    job_id = submit(bench.database)
    assert bench.run(job_id) == "finished"
    assert bench.engine.closed == 0
    assert len(bench.texts(job_id)) == 4


def test_a_worker_that_stops_does_not_wait_for_the_database(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a database that is away for good, and a worker told to stop
    def away(*_: Any) -> None:
        bench.stop()
        raise DatabaseUnavailableError

    monkeypatch.setattr(recording, "record_micro_batch", away)
    job_id = submit(bench.database)
    with pytest.raises(DatabaseUnavailableError):
        bench.run(job_id)
    # then the shard is left to its lease, which somebody will find expired
    (shard_id,) = shard_ids(bench.database, job_id)
    assert shard(bench.database, shard_id).status == "running"


def test_a_stop_after_the_last_row_still_finishes_the_shard(bench: Bench) -> None:
    # given a worker that is told to stop while it generates the last prompt
    def stop_at_the_end(request: GenerationRequest) -> str:
        if request.key == 3:
            bench.stop()
        return "done"

    bench.engine.answer = stop_at_the_end
    job_id = submit(bench.database)
    # then there is nothing left to put back
    assert bench.run(job_id) == "finished"
    assert reading.job_report(bench.database, job_id).status == "completed"


class PowerCut(BaseException):
    """Ends the process without any handling, as SIGKILL does."""


def die_loading(bench: Bench, shard_id: int) -> None:
    bench.loader.raises = PowerCut()
    with pytest.raises(PowerCut):
        bench.runner().run(shard_id)
    expire_lease(bench.database, shard_id)


def test_deaths_while_loading_are_the_model_s_not_the_prompts(bench: Bench) -> None:
    job_id = submit(bench.database)
    (shard_id,) = shard_ids(bench.database, job_id)
    for _ in range(3):
        die_loading(bench, shard_id)
    assert bench.run(job_id) == "job failed"
    report = reading.job_report(bench.database, job_id)
    assert (report.status, report.error_code) == ("failed", "model_load_failed")
    assert "3 workers died while loading" in (report.error_message or "")
    assert shard_ids(bench.database, job_id) == [shard_id]


def test_a_load_that_succeeds_forgives_the_deaths_before(bench: Bench) -> None:
    job_id = submit(bench.database)
    (shard_id,) = shard_ids(bench.database, job_id)
    for _ in range(2):
        die_loading(bench, shard_id)
    bench.loader.raises = None
    assert bench.run(job_id) == "finished"
    row = shard(bench.database, shard_id)
    assert (row.crashes, row.load_crashes, row.loading) == (0, 0, False)


def test_a_surprise_while_loading_fails_the_job_and_no_prompt(bench: Bench) -> None:
    bench.loader.raises = RuntimeError("CUDA driver too old")
    job_id = submit(bench.database)
    assert bench.run(job_id) == "job failed"
    report = reading.job_report(bench.database, job_id)
    assert report.error_message == "RuntimeError: CUDA driver too old"
