"""A row ends at an end token, a stop string or its length, each row on its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from engine.decode.stopping import (
    RowProgress,
    RowStopper,
    StopStringWatch,
    cut_at_stop,
    decode_text,
)
from tests.tiny_checkpoints import tiny_tokenizer

END = 99


class LetterTokenizer:
    """Token n is pieces[n]."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def decode(self, token_ids: Sequence[int], **_options: object) -> str:
        return "".join(self.pieces[token] for token in token_ids)


def run(
    rows: list[RowProgress], steps: Sequence[Sequence[int]], *, stop_at: int | None = None
) -> tuple[RowStopper, list[list[bool]]]:
    """Feed steps of one token per row; should_stop() turns true at call stop_at."""
    calls = 0

    def should_stop() -> bool:
        nonlocal calls
        calls += 1
        return stop_at is not None and calls >= stop_at

    stopper = RowStopper(rows, eos_token_ids=[END], should_stop=should_stop)
    return stopper, [stopper(torch.tensor([step]).T, None).tolist() for step in steps]


def row(max_new_tokens: int, *stop: str, tokenizer: object = None) -> RowProgress:
    watch = StopStringWatch(tokenizer or LetterTokenizer(*"abcdef"), stop)
    return RowProgress(max_new_tokens=max_new_tokens, watch=watch)


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


def test_each_row_has_its_own_length() -> None:
    rows = [row(1), row(3)]
    _, finished = run(rows, [[0, 0], [1, 1], [1, 2]])
    assert finished == [[True, False], [True, False], [True, True]]
    assert [r.token_ids for r in rows] == [[0], [0, 1, 2]]
    assert [r.finish_reason for r in rows] == ["length", "length"]


def test_the_end_token_counts_and_ends_its_row_alone() -> None:
    rows = [row(9), row(9)]
    run(rows, [[END, 0], [5, 1]])
    assert rows[0].token_ids == [END]
    assert rows[0].finish_reason == "stop"
    assert rows[1].finish_reason is None


def test_an_end_token_at_the_length_limit_is_a_stop() -> None:
    rows = [row(1)]
    run(rows, [[END]])
    assert rows[0].finish_reason == "stop"


def test_a_stop_string_may_span_tokens() -> None:
    rows = [row(9, "bcd")]
    _, finished = run(rows, [[0], [1], [2], [3]])
    assert finished == [[False], [False], [False], [True]]
    assert rows[0].finish_reason == "stop"


def test_a_stop_string_may_stand_inside_a_token() -> None:
    rows = [row(9, "\n", tokenizer=LetterTokenizer("x", "y\nz"))]
    _, finished = run(rows, [[0], [1]])
    assert finished == [[False], [True]]


def test_silent_tokens_do_not_hide_a_stop_string() -> None:
    rows = [row(99, "ab", tokenizer=LetterTokenizer("a", "", "b"))]
    _, finished = run(rows, [[0], *[[1]] * 40, [2]])
    assert finished[-1] == [True]
    assert not any(step[0] for step in finished[:-1])


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


def test_should_stop_ends_the_batch_and_leaves_unfinished_rows_unfinished() -> None:
    rows = [row(1), row(9)]
    stopper, finished = run(rows, [[0, 0], [1, 1]], stop_at=2)
    assert finished == [[True, False], [True, True]]
    assert stopper.was_interrupted
    assert [r.finish_reason for r in rows] == ["length", None]


def test_rows_that_finish_in_the_step_of_the_stop_are_finished() -> None:
    rows = [row(1)]
    stopper, _ = run(rows, [[0]], stop_at=1)
    assert not stopper.was_interrupted
    assert rows[0].finish_reason == "length"
