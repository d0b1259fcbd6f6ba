"""A job is stored whole or not at all, and once for each idempotency key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from jobs.database import Database
from jobs.errors import BadInputError, IdempotencyConflictError
from jobs.models import jobs, prompts, shards
from jobs.prompts.parameters import PromptRequest
from jobs.store.records import Submission
from jobs.store.submission import ID_ALPHABET, ROWS_PER_INSERT, submit_job
from tests.ledger import at_once, column, job_count, new_job, requests, submit

pytestmark = pytest.mark.integration


def rows_in_all_tables(database: Database) -> list[int]:
    with database.read() as connection:
        return [
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (jobs, shards, prompts)
        ]


def test_shards_cover_every_prompt_once_and_in_order(database: Database) -> None:
    # given ten prompts in shards of four
    job_id = submit(database, 10, shard_size=4)
    # then the last shard is the short one
    with database.read() as connection:
        ranges = connection.execute(
            select(shards.c.first_index, shards.c.last_index)
            .where(shards.c.job_id == job_id)
            .order_by(shards.c.id)
        ).all()
    assert [tuple(each) for each in ranges] == [(0, 3), (4, 7), (8, 9)]


def test_a_prompt_is_stored_as_it_was_given(database: Database) -> None:
    # given a text with characters of several planes, and a chat
    text = "naïve \N{SNOWMAN} \N{PILE OF POO}\n\t'quoted'"
    messages = [{"role": "user", "content": text}]
    given = [
        PromptRequest(
            line=1, custom_id="a-1", prompt=text, messages=None, parameters={"stop": ["\n"]}
        ),
        PromptRequest(line=2, custom_id=None, prompt=None, messages=messages, parameters={}),
    ]
    # when they are stored
    submit_job(database, new_job(2), given)
    # then they read the same
    with database.read() as connection:
        stored = connection.execute(select(prompts).order_by(prompts.c.prompt_index)).all()
    assert [(row.custom_id, row.prompt, row.messages, row.parameters) for row in stored] == [
        ("a-1", text, None, {"stop": ["\n"]}),
        (None, None, messages, None),
    ]


def test_a_file_that_fails_half_way_leaves_nothing(database: Database) -> None:
    # given prompts that end in an error after the first rows were inserted
    def broken() -> Iterator[PromptRequest]:
        yield from requests(ROWS_PER_INSERT + 1)
        raise OSError("the disk went away")

    # when they are submitted
    with pytest.raises(OSError, match="the disk went away"):
        submit_job(database, new_job(ROWS_PER_INSERT + 9), broken())
    # then no table holds a row of them
    assert rows_in_all_tables(database) == [0, 0, 0]


@pytest.mark.parametrize("found", [3, 5])
def test_a_file_that_changed_after_its_check_is_refused(database: Database, found: int) -> None:
    # given a file of which four prompts were checked
    with pytest.raises(BadInputError) as refusal:
        submit_job(database, new_job(4), requests(found))
    # then the refusal has both numbers and nothing is stored
    assert refusal.value.message == (
        f"prompts.jsonl: it changed while it was read (4 prompts, then {found}); nothing was stored"
    )
    assert rows_in_all_tables(database) == [0, 0, 0]


def test_a_key_used_again_with_the_same_content_gives_the_same_job(database: Database) -> None:
    first = submit_job(database, new_job(4, idempotency_key="k"), requests(4))
    again = submit_job(database, new_job(4, idempotency_key="k"), requests(4))
    assert (first.created, again) == (True, Submission(job_id=first.job_id, created=False))
    assert job_count(database) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"content_digest": "e" * 64},
        {"model": "tiny-flan"},
        {"parameters": {"temperature": 0.5}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_key_used_again_with_other_content_is_refused(
    database: Database, change: dict[str, Any]
) -> None:
    first = submit(database, idempotency_key="k")
    with pytest.raises(IdempotencyConflictError, match=f"'k' belongs to job {first}"):
        submit(database, idempotency_key="k", **change)
    assert job_count(database) == 1


def test_two_submits_with_one_key_at_once_make_one_job(database: Database) -> None:
    for attempt in range(10):
        job = new_job(4, idempotency_key=f"k{attempt}")
        # when two threads submit the same
        both = at_once(*[lambda job=job: submit_job(database, job, requests(4))] * 2)
        # then both hear of one job, which one of them made
        assert {each.job_id for each in both} == {both[0].job_id}
        assert sorted(each.created for each in both) == [False, True]
    assert job_count(database) == 10


def test_ids_are_short_and_without_letters_that_look_alike(database: Database) -> None:
    ids = {submit(database, 1) for _ in range(20)}
    assert len(ids) == 20
    assert {len(job_id) for job_id in ids} == {8}
    assert set("".join(ids)) <= set(ID_ALPHABET)
    assert not set("01ilouv") & set(ID_ALPHABET)


def test_a_new_job_waits_unpublished(database: Database) -> None:
    job_id = submit(database, 8)
    mine = shards.c.job_id == job_id
    assert column(database, select(shards.c.status).where(mine)) == ["queued", "queued"]
    assert column(database, select(shards.c.published_at).where(mine)) == [None, None]
