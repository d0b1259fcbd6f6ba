"""Per-row sampling does what transformers does for the row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.decode.choice import RowSampler, SampledRow, draw_token, sampled_row
from engine.interface import SamplingParameters
from tests.tiny_checkpoints import END, tiny_model

VOCABULARY = 50


def prepared(
    parameters: SamplingParameters, *, row: int = 0, prompt_tokens: int = 4, padding_tokens: int = 0
) -> SampledRow | None:
    return sampled_row(
        row=row,
        parameters=parameters,
        prompt_tokens=prompt_tokens,
        padding_tokens=padding_tokens,
        eos_token_ids=[END],
        device="cpu",
    )


def sampled(parameters: SamplingParameters, **where: int) -> SampledRow:
    needs = prepared(parameters, **where)
    assert needs is not None
    return needs


def some_logits(rows: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def test_a_plain_greedy_row_needs_no_work() -> None:
    assert prepared(SamplingParameters(top_k=5, top_p=0.5)) is None


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 0.9, "top_p": 0.8},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.6, "repetition_penalty": 1.4},
        {"temperature": 1.0, "min_new_tokens": 2},
        {"repetition_penalty": 1.7, "min_new_tokens": 1},
    ],
    ids=str,
)
def test_processed_scores_equal_those_of_generate(options: dict[str, Any]) -> None:
    model = tiny_model("tiny-cerebras")
    prompt = torch.tensor([[5, 9, 9, 31]])
    plain = {"do_sample": options.get("temperature", 0.0) > 0, "top_k": 0, **options}
    reference = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=2,
        pad_token_id=1,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **plain,
    )
    needs = sampled(SamplingParameters(**options))
    ours = needs.processors(prompt, reference.logits[0].clone())
    assert torch.equal(ours, reference.scores[0])


def test_the_repetition_penalty_does_not_see_padding() -> None:
    padding = torch.zeros(1, 6, dtype=torch.long)
    prompt = torch.tensor([[5, 9, 9, 31]])
    parameters = SamplingParameters(repetition_penalty=2.0)
    alone = RowSampler([sampled(parameters)])(prompt, some_logits())
    padded = RowSampler([sampled(parameters, padding_tokens=6)])(
        torch.cat([padding, prompt], dim=1), some_logits()
    )
    assert torch.equal(alone, padded)


def test_a_row_draws_the_same_tokens_whatever_its_batch_mates() -> None:
    parameters = SamplingParameters(temperature=1.2, top_k=20, seed=11)
    ids = torch.tensor([[5, 9, 9, 31]])

    def draws(rows: list[SampledRow], place: int) -> list[int]:
        sampler = RowSampler(rows)
        batch = ids.expand(place + 1, -1)
        return [
            int(
                sampler(batch, some_logits(1, step).expand(place + 1, -1).clone()).argmax(-1)[place]
            )
            for step in range(8)
        ]

    mates = [sampled(SamplingParameters(temperature=0.8, seed=n), row=n) for n in range(3)]
    assert draws([sampled(parameters)], 0) == draws([*mates, sampled(parameters, row=3)], 3)


def test_seeds_make_a_difference() -> None:
    flat = torch.zeros(1, VOCABULARY)
    tokens = {
        int(
            RowSampler([sampled(SamplingParameters(temperature=1.0, seed=seed))])(
                torch.tensor([[5]]), flat.clone()
            ).argmax()
        )
        for seed in range(20)
    }
    assert len(tokens) > 5


def test_greedy_mates_of_a_sampled_row_keep_their_scores() -> None:
    logits = some_logits(2)
    sampler = RowSampler([sampled(SamplingParameters(temperature=1.0), row=1)])
    scores = sampler(torch.ones(2, 3, dtype=torch.long), logits.clone())
    assert torch.equal(scores[0], logits[0])
    assert int(torch.isfinite(scores[1]).sum()) == 1


def test_min_new_tokens_masks_the_end_until_it_is_reached() -> None:
    needs = sampled(SamplingParameters(min_new_tokens=2), prompt_tokens=1)
    logits = torch.zeros(1, VOCABULARY)
    first = needs.processors(torch.tensor([[5]]), logits.clone())
    third = needs.processors(torch.tensor([[5, 6, 7]]), logits.clone())
    assert first[0, END] == -torch.inf
    assert third[0, END] == 0.0


def test_a_temperature_next_to_zero_is_the_greedy_pick() -> None:
    logits = some_logits()
    needs = sampled(SamplingParameters(temperature=1e-40))
    scores = RowSampler([needs])(torch.tensor([[5]]), logits.clone())
    assert int(scores.argmax()) == int(logits.argmax())


def test_a_draw_never_takes_a_masked_token() -> None:
    scores = torch.full((VOCABULARY,), -torch.inf)
    scores[[3, 4]] = 0.0
    generator = torch.Generator().manual_seed(0)
    assert {draw_token(scores, generator, fallback=scores) for _ in range(50)} == {3, 4}


def test_a_negative_seed_and_a_huge_one_are_seeds() -> None:
    for seed in (-1, 2**70):
        assert sampled(SamplingParameters(temperature=1.0, seed=seed)).generator is not None


def test_the_first_logits_are_announced_once() -> None:
    marks: list[int] = []
    sampler = RowSampler([], on_first_logits=lambda: marks.append(1))
    for _ in range(3):
        sampler(torch.tensor([[5]]), some_logits())
    assert marks == [1]
