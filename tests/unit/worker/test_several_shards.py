"""Several shards in one batch: each gets its own results, and none pays for another."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from engine.interface import GenerationRequest, ModelDescription
from jobs.database import Database
from jobs.errors import DatabaseUnavailableError
from jobs.models import completions, micro_batches, shards
from jobs.store import joining, reading
from jobs.store.control import cancel_job
from jobs.store.results import result_rows
from tests.ledger import claim, column, expire_lease, results_of, shard, shard_ids, submit
from tests.unit.worker.bench import Bench
from worker.shards.joining import LONGEST_CHAIN_SECONDS, SECONDS_EMPTY_HANDED, JoiningShards

EIGHT = [f"answer {index}" for index in range(8)]


@pytest.fixture(autouse=True)
def _three_rows(bench: Bench) -> None:
    """So that a shard of four leaves two rows of its second window empty."""
    bench.engine.rows = 3


def statuses(bench: Bench, job_id: str) -> list[str]:
    return [shard(bench.database, each).status for each in shard_ids(bench.database, job_id)]


def windows_of(bench: Bench) -> list[int]:
    """How many rows each window of the engine finished, by the ledger."""
    return column(
        bench.database,
        select(func.count(completions.c.prompt_index))
        .join(micro_batches, micro_batches.c.id == completions.c.micro_batch_id)
        .group_by(micro_batches.c.id)
        .order_by(micro_batches.c.id),
    )


def test_the_rows_that_a_shard_leaves_empty_go_to_the_next(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    assert bench.run(job_id) == "finished"
    # then three windows did for two shards, of which the second was split
    assert windows_of(bench) == [3, 1, 2, 2]
    assert bench.texts(job_id) == EIGHT
    assert reading.job_report(bench.database, job_id).status == "completed"
    # and the message of the second finds it taken
    second = shard_ids(bench.database, job_id)[1]
    assert bench.runner().run(second) == "not ours"


def test_what_a_window_took_is_counted_once(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    bench.run(job_id)
    # given three windows of 1.25 s, ten steps and 1001 bytes
    report = reading.job_report(bench.database, job_id)
    assert report.prefill_seconds + report.decode_seconds == pytest.approx(3 * 1.25)
    assert (report.prompt_tokens, report.completion_tokens) == (24, 16)
    steps = reading.step_report(bench.database, job_id)
    assert (steps.steps, steps.streamed_bytes) == (30, 3003)
    assert steps.rows == pytest.approx(80 / 30)
    assert steps.row_capacity == 4.0
    assert steps.link_wait_share == pytest.approx(0.6)


def test_a_row_waited_since_its_own_shard_was_claimed(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    bench.run(job_id)
    for row in result_rows(bench.database, job_id):
        # then the engine's half second of waiting is in both, and prefill in one
        assert 0.5 <= row.queued_seconds < 30
        assert 0.75 <= (row.first_token_seconds or 0) < 30
        assert row.tokens_per_second == 2 / 1.25


@pytest.mark.parametrize(("at_once", "windows"), [(1, [3, 1]), (2, [3, 1, 2, 2, 1, 3])])
def test_no_more_shards_are_held_than_are_set(
    bench: Bench, at_once: int, windows: list[int]
) -> None:
    job_id = submit(bench.database, 16)
    bench.runner(shards_at_once=at_once).run(shard_ids(bench.database, job_id)[0])
    assert windows_of(bench) == windows


def test_small_shards_join_until_the_window_is_full(bench: Bench) -> None:
    job_id = submit(bench.database, 3, shard_size=1)
    bench.runner(shards_at_once=3).run(shard_ids(bench.database, job_id)[0])
    assert windows_of(bench) == [1, 1, 1]
    assert len({request.key for request in bench.engine.seen}) == 3


def test_a_higher_priority_joins_first_and_then_the_older_job(bench: Bench) -> None:
    low = submit(bench.database, 1, priority="low")
    older, newer = submit(bench.database, 1), submit(bench.database, 1)
    high = submit(bench.database, 1, priority="high")
    first = submit(bench.database, 1)
    ended: list[str] = []
    for most in range(2, 6):
        bench.engine.rows = most
        bench.runner(shards_at_once=most).run(shard_ids(bench.database, first)[0])
        now = [each for each in (low, older, newer, high) if "completed" in statuses(bench, each)]
        ended += [each for each in now if each not in ended]
        first = submit(bench.database, 1)
        cancel_job(bench.database, submit(bench.database, 1))
    assert ended[0] == high
    assert ended.index(older) < ended.index(newer) < ended.index(low)


def test_a_shard_of_another_model_does_not_join(bench: Bench) -> None:
    job_id = submit(bench.database, 1)
    other = submit(bench.database, 1, model="tiny-flan")
    assert bench.run(job_id) == "finished"
    assert statuses(bench, other) == ["queued"]


def test_a_cancelled_job_loses_its_rows_and_the_other_keeps_its_own(bench: Bench) -> None:
    first, second = submit(bench.database, 4), submit(bench.database, 4)

    def cancel_second(row: int) -> None:
        if row == 4:  # the first of the second job
            cancel_job(bench.database, second)

    bench.engine.before_row = cancel_second
    # when the second job's first results are refused
    assert bench.run(first) == "lost"
    # then the rest of it is not asked for, and the first is complete
    assert bench.texts(first) == EIGHT[:4]
    assert (results_of(bench.database, second), statuses(bench, second)) == ([], ["cancelled"])
    assert len(bench.engine.seen) < 8


def test_the_rows_of_a_lost_lease_are_not_wanted_any_more(bench: Bench) -> None:
    # given a second job that is cancelled while its rows are in the engine
    first, second = submit(bench.database, 4), submit(bench.database, 4)
    generated: list[int] = []

    def cancel_and_wait(row: int) -> None:
        if row == 3:  # the last of the first job, with two of the second beside it
            cancel_job(bench.database, second)
            time.sleep(1.0)  # until its lease keeper has noticed

    def answer(request: GenerationRequest) -> str:
        generated.append(request.key)
        return "here"

    bench.engine.before_row, bench.engine.answer = cancel_and_wait, answer
    runner = bench.runner(lease_seconds=0.6)
    # then the engine drops those rows, and no others
    assert runner.run(shard_ids(bench.database, first)[0]) == "lost"
    assert generated == [0, 1, 2, 3]
    assert statuses(bench, first) == ["completed"]


def test_a_shard_that_another_took_over_is_dropped_alone(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    first, second = shard_ids(bench.database, job_id)

    def take_over(row: int) -> None:
        if row == 3:  # the last of the first shard, with two of the second beside it
            expire_lease(bench.database, first)
            claim(bench.database, first, worker="another")

    bench.engine.before_row = take_over
    assert bench.run(job_id) == "lost"
    assert results_of(bench.database, job_id) == [0, 1, 2, 4, 5, 6, 7]
    assert shard(bench.database, first).lease_owner == "another"
    assert shard(bench.database, second).status == "completed"


def test_a_stop_gives_all_of_them_back(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    bench.engine.before_row = lambda row: bench.stop() if row == 5 else None
    assert bench.run(job_id) == "given back"
    assert results_of(bench.database, job_id) == [0, 1, 2, 3, 4]
    # the first had its last result, so it has ended
    assert statuses(bench, job_id) == ["completed", "queued"]


def test_a_stop_before_a_shard_joins_lets_none_join(bench: Bench) -> None:
    job_id = submit(bench.database, 8)

    def stop_at_the_end_of_the_window(request: GenerationRequest) -> str:
        if request.key == 2:
            bench.stop()
        return "done"

    bench.engine.answer = stop_at_the_end_of_the_window
    assert bench.run(job_id) == "given back"
    assert shard(bench.database, shard_ids(bench.database, job_id)[1]).attempt == 0


def fail(request: GenerationRequest) -> str:
    raise RuntimeError("CUDA error")


def test_an_engine_that_breaks_releases_all_and_blames_none(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    bench.engine.before_row = lambda row: fail(bench.engine.seen[0]) if row == 4 else None
    assert bench.run(job_id) == "crashed"
    # then which of the two it was is not known
    for shard_id in shard_ids(bench.database, job_id):
        row = shard(bench.database, shard_id)
        assert (row.status, row.crashes, row.runs_alone) == ("queued", 0, True)
        assert (row.last_error, row.beside_others) == ("RuntimeError: CUDA error", False)
    # and each is run alone from now on
    bench.engine.before_row = lambda row: None
    assert bench.run(job_id) == "finished"
    assert statuses(bench, job_id) == ["completed", "queued"]


def test_a_shard_that_failed_before_is_joined_by_none(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    first, second = shard_ids(bench.database, job_id)
    count_a_crash(bench.database, first)
    assert bench.run(job_id) == "finished"
    assert shard(bench.database, second).attempt == 0


@pytest.mark.parametrize("count", ["crashes", "load_crashes"])
def test_a_shard_that_failed_before_joins_none(bench: Bench, count: str) -> None:
    job_id = submit(bench.database, 12)
    second = shard_ids(bench.database, job_id)[1]
    count_a_crash(bench.database, second, count)
    assert bench.run(job_id) == "finished"
    assert statuses(bench, job_id) == ["completed", "queued", "completed"]


def count_a_crash(database: Database, shard_id: int, count: str = "crashes") -> None:
    with database.write() as connection:
        connection.execute(update(shards).where(shards.c.id == shard_id).values({count: 1}))


def test_the_halves_of_a_shard_that_was_cut_are_run_alone(bench: Bench) -> None:
    job_id = submit(bench.database, 8)
    (first, _) = shard_ids(bench.database, job_id)
    with bench.database.write() as connection:
        connection.execute(update(shards).where(shards.c.id == first).values(crashes=3))
    assert bench.run(job_id) == "isolated"
    assert [
        shard(bench.database, each).runs_alone for each in shard_ids(bench.database, job_id)
    ] == [
        True,
        False,
        True,
    ]


def test_a_ledger_that_is_away_lets_none_join_and_stops_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailableError

    monkeypatch.setattr(joining, "shard_to_join", away)
    job_id = submit(bench.database, 8)
    assert bench.run(job_id) == "finished"
    assert statuses(bench, job_id) == ["completed", "queued"]


def test_a_window_without_results_is_the_oldest_shard_s(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows may be alive all through a window and none of them end in it."""
    generate = bench.engine.generate

    def with_an_empty_window(feed: Any, *, should_stop: Any) -> Any:
        for batch in generate(feed, should_stop=should_stop):
            yield replace(batch, results=(), prompt_tokens=0, completion_tokens=0)
            yield batch

    monkeypatch.setattr(bench.engine, "generate", with_an_empty_window)
    job_id = submit(bench.database, 4)
    assert bench.run(job_id) == "finished"
    assert reading.step_report(bench.database, job_id).steps == 40


def test_the_mode_of_computing_is_kept_with_each_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: ModelDescription = replace(bench.engine.model, compute_mode="w8a16")
    monkeypatch.setattr(type(bench.engine), "model", model)
    bench.run(submit(bench.database, 4))
    assert set(column(bench.database, select(micro_batches.c.compute_mode))) == {"w8a16"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestTurns:
    """Whether a shard may join, by the models' turns."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def joining_shards(self, bench: Bench, clock: Clock) -> JoiningShards:
        """With a turn of 100 seconds, and a job of many shards."""
        self.job_id = submit(bench.database, 40)
        self.held = claim(bench.database, shard_ids(bench.database, self.job_id)[0], worker="w")
        chosen = JoiningShards(
            database=bench.database,
            settings=replace(bench.settings, sticky_seconds=100.0),
            worker_id="w",
            served={"tiny-bloom", "tiny-flan"},
            clock=clock,
        )
        chosen.begin("tiny-bloom")
        return chosen

    def joins(self, joining_shards: JoiningShards) -> bool:
        return joining_shards.claim_beside([self.held]) is not None

    def test_a_turn_is_kept_while_others_wait(
        self, bench: Bench, joining_shards: JoiningShards, clock: Clock
    ) -> None:
        submit(bench.database, model="tiny-flan")
        assert self.joins(joining_shards)
        clock.now += 99.0
        assert self.joins(joining_shards)

    def test_after_its_turn_a_model_gives_way(
        self, bench: Bench, joining_shards: JoiningShards, clock: Clock
    ) -> None:
        submit(bench.database, model="tiny-flan")
        clock.now += 100.0
        assert not self.joins(joining_shards)

    def test_a_turn_goes_on_with_the_next_message_of_the_model(
        self, bench: Bench, joining_shards: JoiningShards, clock: Clock
    ) -> None:
        submit(bench.database, model="tiny-flan")
        clock.now += 60.0
        joining_shards.begin("tiny-bloom")
        clock.now += 60.0
        assert not self.joins(joining_shards)
        # but if the queues chose it again then, so be it
        joining_shards.begin("tiny-bloom")
        assert self.joins(joining_shards)

    def test_where_nobody_waits_there_is_no_end_to_a_turn(
        self, bench: Bench, joining_shards: JoiningShards, clock: Clock
    ) -> None:
        submit(bench.database, model="not served here")
        clock.now += 200.0
        assert self.joins(joining_shards)

    def test_now_and_then_the_messages_are_read_all_the_same(
        self, joining_shards: JoiningShards, clock: Clock
    ) -> None:
        clock.now += LONGEST_CHAIN_SECONDS
        assert not self.joins(joining_shards)
        joining_shards.begin("tiny-bloom")
        assert self.joins(joining_shards)

    def test_a_higher_priority_of_another_model_ends_the_turn_at_once(
        self, bench: Bench, joining_shards: JoiningShards
    ) -> None:
        submit(bench.database, model="tiny-flan", priority="high")
        assert not self.joins(joining_shards)

    def test_an_empty_ledger_is_not_asked_at_every_step(
        self, bench: Bench, joining_shards: JoiningShards, clock: Clock
    ) -> None:
        cancel_job(bench.database, self.job_id)
        assert not self.joins(joining_shards)
        submit(bench.database)
        assert not self.joins(joining_shards)
        clock.now += SECONDS_EMPTY_HANDED
        assert self.joins(joining_shards)


def test_a_window_s_parts_add_up(bench: Bench) -> None:
    """Shares that do not divide evenly are rounded so that nothing is lost."""
    bench.engine.rows = 7
    job_id = submit(bench.database, 7, shard_size=3)
    bench.runner(shards_at_once=3).run(shard_ids(bench.database, job_id)[0])
    counted = column(bench.database, select(micro_batches.c.streamed_bytes))
    assert (len(counted), sum(counted)) == (3, 1001)
