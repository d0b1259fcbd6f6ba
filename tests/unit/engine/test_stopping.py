"""A row ends at an end token, a stop string or its length, each row on its own."""

from __future__ import annotations

import pytest

from engine.decode.stopping import StopStringWatch, cut_at_stop, decode_text
from tests.rows import LetterTokenizer, append, row_of
from tests.tiny_checkpoints import tiny_tokenizer

END = 5


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), ("one ", True)),
        ("one two three", ("three", "two"), ("one ", True)),
        ("two", ("two",), ("", True)),
        ("one", ("two",), ("one", False)),
        ("one", ("",), ("one", False)),
    ],
)
def test_text_is_cut_before_the_earliest_stop_string(
    text: str, stop: tuple[str, ...], expected: tuple[str, bool]
) -> None:
    assert cut_at_stop(text, stop) == expected


def test_a_row_ends_at_its_own_length() -> None:
    row = row_of(max_new_tokens=3)
    assert append(row, 0, 1, 2) == [False, False, True]
    assert row.new_tokens == [0, 1, 2]
    assert row.finish_reason == "length"


def test_the_end_token_counts_and_ends_its_row() -> None:
    row = row_of(max_new_tokens=9, end_tokens=[END])
    assert append(row, END) == [True]
    assert row.new_tokens == [END]
    assert row.finish_reason == "stop"


def test_an_end_token_at_the_length_limit_is_a_stop() -> None:
    row = row_of(max_new_tokens=1, end_tokens=[END])
    append(row, END)
    assert row.finish_reason == "stop"


def test_a_stop_string_may_span_tokens() -> None:
    row = row_of(max_new_tokens=9, stop=("bcd",))
    assert append(row, 0, 1, 2, 3) == [False, False, False, True]
    assert row.finish_reason == "stop"


def test_a_stop_string_may_stand_inside_a_token() -> None:
    row = row_of(max_new_tokens=9, stop=("\n",), tokenizer=LetterTokenizer("x", "y\nz"))
    assert append(row, 0, 1) == [False, True]


def test_silent_tokens_do_not_hide_a_stop_string() -> None:
    row = row_of(max_new_tokens=99, stop=("ab",), tokenizer=LetterTokenizer("a", "", "b"))
    assert append(row, 0, *[1] * 40, 2) == [False] * 41 + [True]


def test_a_row_that_begins_anew_has_forgotten_its_tokens_and_draws_as_before() -> None:
    row = row_of(max_new_tokens=9, stop=("ab",), temperature=1.0, seed=4)
    assert row.generator is not None
    drawn = row.generator.get_state()
    row.generator.seed()
    append(row, 0)
    row.restart()
    assert row.new_tokens == []
    assert row.generator.get_state().equal(drawn)
    # the "a" from before the restart is no part of a stop string
    assert append(row, 1, 0, 1) == [False, False, True]


def test_a_stop_string_of_several_bytes_per_letter_is_found_with_a_real_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    text = "the queue → жизнь, the worker"
    token_ids = tokenizer(text)["input_ids"]
    watch = StopStringWatch(tokenizer, ["жизнь,"])
    found = next(n for n in range(1, len(token_ids) + 1) if watch.is_found(token_ids[:n]))
    assert cut_at_stop(decode_text(tokenizer, token_ids[:found]), ["жизнь,"]) == (
        "the queue → ",
        True,
    )


def test_every_place_is_found_at_the_first_token_that_completes_it() -> None:
    tokenizer = tiny_tokenizer()
    token_ids = tokenizer("a prompt is never lost, and a worker takes one shard")["input_ids"]
    for stop in ("never", "t i", "lost,", "shard"):
        watch = StopStringWatch(tokenizer, [stop])
        incremental = [watch.is_found(token_ids[:n]) for n in range(1, len(token_ids) + 1)]
        whole = [stop in decode_text(tokenizer, token_ids[: n + 1]) for n in range(len(token_ids))]
        assert incremental.index(True) == whole.index(True)
