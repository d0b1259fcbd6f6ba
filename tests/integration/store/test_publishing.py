"""Every queued shard gets a message, from one sweeper only."""

from __future__ import annotations

from itertools import chain

import pytest
from sqlalchemy import select, update

from jobs.database import Database
from jobs.models import database_now, shards
from jobs.store import leases, publishing
from jobs.store.control import cancel_job
from jobs.store.records import PublishableShard
from tests.ledger import (
    at_once,
    claim,
    column,
    shard,
    shard_ids,
    submit,
    submit_and_claim,
    work_through,
)

pytestmark = pytest.mark.integration


def published_long_ago(database: Database) -> None:
    with database.write() as connection:
        connection.execute(update(shards).values(published_at=database_now(-100.0)))


def test_a_new_job_s_shards_are_handed_out_in_order_and_once(database: Database) -> None:
    job_id = submit(database, 8, model="tiny-flan", priority="high")
    taken = publishing.take_unpublished(database)
    assert taken == [
        PublishableShard(shard_id=shard_id, model="tiny-flan", priority="high")
        for shard_id in shard_ids(database, job_id)
    ]
    assert publishing.take_unpublished(database) == []


def test_a_submit_publishes_its_own_job_only(database: Database) -> None:
    submit(database)
    mine = submit(database)
    taken = publishing.take_unpublished(database, mine)
    assert [each.shard_id for each in taken] == shard_ids(database, mine)


def test_of_sweepers_at_once_one_gets_each_shard(database: Database) -> None:
    ids = shard_ids(database, submit(database, 60, shard_size=1))

    def sweep() -> list[int]:
        return [each.shard_id for each in publishing.take_unpublished(database)]

    taken = at_once(*[sweep] * 4)
    assert sorted(chain.from_iterable(taken)) == ids


def test_what_could_not_be_sent_is_taken_again(database: Database) -> None:
    first, second = shard_ids(database, submit(database, 8))
    publishing.take_unpublished(database)
    publishing.unpublish(database, [second])
    assert [each.shard_id for each in publishing.take_unpublished(database)] == [second]
    assert shard(database, first).published_at is not None


def test_a_shard_that_was_claimed_meanwhile_needs_no_message(database: Database) -> None:
    # given a message that was sent although the sender heard of an error
    held = submit_and_claim(database)
    publishing.take_unpublished(database)
    with database.write() as connection:
        connection.execute(update(shards).values(published_at=database_now()))
    publishing.unpublish(database, [held.shard_id])
    assert shard(database, held.shard_id).published_at is not None


def test_a_shard_given_back_wants_a_new_message(database: Database) -> None:
    held = submit_and_claim(database)
    leases.release_shard(database, held)
    assert [each.shard_id for each in publishing.take_unpublished(database)] == [held.shard_id]


@pytest.mark.parametrize("end", ["cancelled", "completed", "claimed"])
def test_shards_that_need_no_message_get_none(database: Database, end: str) -> None:
    held = submit_and_claim(database)
    if end == "cancelled":
        cancel_job(database, held.job_id)
    elif end == "completed":
        work_through(database, held)
    assert publishing.take_unpublished(database) == []


def test_shards_of_an_ended_job_get_no_message_though_they_wait(database: Database) -> None:
    job_id = submit(database)
    cancel_job(database, job_id)
    with database.write() as connection:
        connection.execute(update(shards).values(status="queued"))
    assert publishing.take_unpublished(database) == []
    assert publishing.models_waiting(database) == []


def test_old_messages_of_a_model_are_sent_again(database: Database) -> None:
    mine = submit(database, model="tiny-flan")
    submit(database, model="tiny-bloom")
    publishing.take_unpublished(database)
    published_long_ago(database)
    taken = publishing.take_stale(database, "tiny-flan", 60.0)
    assert [each.shard_id for each in taken] == shard_ids(database, mine)
    assert publishing.take_stale(database, "tiny-flan", 60.0) == [], "they are new again"


def test_messages_sent_lately_are_left_alone(database: Database) -> None:
    submit(database, model="tiny-flan")
    publishing.take_unpublished(database)
    assert publishing.take_stale(database, "tiny-flan", 60.0) == []


def test_models_wait_while_they_have_queued_shards(database: Database) -> None:
    submit(database, 8, model="tiny-flan")
    (shard_id,) = shard_ids(database, submit(database, model="tiny-bloom"))
    assert sorted(publishing.models_waiting(database)) == ["tiny-bloom", "tiny-flan"]
    claim(database, shard_id)
    assert publishing.models_waiting(database) == ["tiny-flan"]


def test_more_shards_than_one_transaction_s_worth_are_taken_in_turns(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "SHARDS_PER_TRANSACTION", 3)
    ids = shard_ids(database, submit(database, 5, shard_size=1))
    turns = [publishing.take_unpublished(database) for _ in range(3)]
    assert [[each.shard_id for each in turn] for turn in turns] == [ids[:3], ids[3:], []]
    assert None not in column(database, select(shards.c.published_at))
