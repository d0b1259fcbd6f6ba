"""A row's next token depends on its logits, parameters and seed, and is what transformers takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.decode.choice import choose_tokens, draw_token, warpers
from engine.decode.row import Row
from engine.interface import SamplingParameters
from tests.rows import LetterTokenizer, row_of
from tests.tiny_checkpoints import END, tiny_model

VOCABULARY = 50


def some_logits(rows: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def chosen(logits: torch.Tensor, *rows: Row) -> list[int]:
    return [token.token_id for token in choose_tokens([logits], rows)]


def test_a_plain_greedy_row_takes_the_likeliest_token() -> None:
    row = row_of(top_k=5, top_p=0.5)
    assert row.is_plain
    assert chosen(some_logits(), row) == [int(some_logits().argmax())]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.6},
    ],
    ids=str,
)
def test_warped_scores_equal_those_of_generate(options: dict[str, Any]) -> None:
    reference = reference_scores(do_sample=True, **{"top_k": 0, **options})
    warp = warpers(SamplingParameters(**options))
    assert torch.equal(warp(None, reference.logits[0].clone()), reference.scores[0])


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.7}, {"repetition_penalty": 1.7, "min_new_tokens": 1}]
)
def test_penalised_greedy_tokens_are_those_of_generate(options: dict[str, Any]) -> None:
    reference = reference_scores(do_sample=False, **options)
    row = row_of([5, 9, 9, 31], end_tokens=[END], **options)
    assert chosen(reference.logits[0], row) == [int(reference.scores[0].argmax())]


def reference_scores(**options: Any) -> Any:
    prompt = torch.tensor([[5, 9, 9, 31]])
    return tiny_model("tiny-cerebras").generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=2,
        pad_token_id=1,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def test_a_row_draws_the_same_tokens_whatever_its_batch_mates() -> None:
    options: dict[str, Any] = {"temperature": 1.2, "top_k": 20, "seed": 11}
    alone, together = row_of(**options), row_of(**options)
    mates = [row_of(temperature=0.8, seed=n) for n in range(3)] + [row_of()]
    for step in range(8):
        logits = some_logits(1, step)
        assert chosen(logits, alone) == chosen(logits.expand(5, -1), *mates, together)[-1:]


def test_seeds_make_a_difference() -> None:
    flat = torch.zeros(1, VOCABULARY)
    rows = [row_of(temperature=1.0, seed=seed) for seed in range(20)]
    assert len(set(chosen(flat.expand(20, -1), *rows))) > 5


def test_min_new_tokens_masks_the_end_until_it_is_reached() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, END], logits[0, 7] = 2.0, 1.0
    row = row_of([5], end_tokens=[END], min_new_tokens=2)
    assert chosen(logits, row) == [7]
    row.tokens += [7, 7]
    assert chosen(logits, row) == [END]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0}, {"repetition_penalty": 2.0}], ids=str
)
def test_a_forced_first_token_comes_first_and_only_there(options: dict[str, Any]) -> None:
    logits = torch.full((1, VOCABULARY), -torch.inf)
    logits[0, 7], logits[0, 8] = 9.0, -9.0
    row = row_of([1], **options)
    row.forced_first = 30
    assert chosen(logits.nan_to_num(neginf=-99.0), row) == [30]
    row.tokens.append(30)
    assert chosen(logits, row) == [7]


def test_a_temperature_next_to_zero_is_the_greedy_pick() -> None:
    logits = some_logits()
    assert chosen(logits, row_of(temperature=1e-40)) == [int(logits.argmax())]


def test_a_draw_never_takes_a_masked_token() -> None:
    scores = torch.full((VOCABULARY,), -torch.inf)
    scores[[3, 4]] = 0.0
    generator = torch.Generator().manual_seed(0)
    assert {draw_token(scores, generator, fallback=scores) for _ in range(50)} == {3, 4}


@pytest.mark.parametrize("seed", [-1, 2**70])
def test_a_negative_seed_and_a_huge_one_are_seeds(seed: int) -> None:
    rows = [row_of(temperature=1.0, seed=seed) for _ in range(2)]
    tokens = [chosen(torch.zeros(1, VOCABULARY), row) for row in rows]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"logprobs": 1}], ids=str)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_row_whose_logits_are_not_finite_fails_alone(
    options: dict[str, Any], wrong: float
) -> None:
    rows = [row_of(max_new_tokens=1, **options) for _ in range(2)]
    logits = torch.zeros(2, VOCABULARY)
    logits[0, 9], logits[1, 2] = wrong, 99.0
    tokenizer = LetterTokenizer(*"x" * VOCABULARY)
    for row, token in zip(rows, choose_tokens([logits], rows), strict=True):
        row.append(token, 1.0)
    failed, fine = (row.result(tokenizer) for row in rows)
    assert failed.error is not None
    assert failed.error.code == "not_finite"
    assert "w8a16" in failed.error.message
    assert (fine.error, fine.text) == (None, "c")
