"""What one request may ask for, beside batch mates that ask for something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.interface import ChatMessage, GenerationRequest, GenerationResult
from tests.continuous_engines import by_key, continuous, loaded, request, windows
from tests.tiny_checkpoints import ALIASES, ENCODER_DECODERS

PROMPT = "the worker takes one shard at a time"
# Others in the batch, so that nothing is right only for a row alone.
MATES: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 9, "temperature": 1.1, "seed": 4},
    {"max_new_tokens": 5, "repetition_penalty": 1.7},
    {"max_new_tokens": 7, "logprobs": 2},
)


def asked(alias: str, **parameters: Any) -> GenerationResult:
    """What PROMPT gets with these parameters."""
    requests = [request(0, PROMPT, **parameters)]
    requests += [request(key, "once", **mate) for key, mate in enumerate(MATES, start=1)]
    return by_key(windows(continuous(alias), requests))[0]


def greedy_ids(alias: str, new_tokens: int) -> list[int]:
    """The tokens of transformers' own generate()."""
    model = loaded(alias)
    ids = torch.tensor([model.tokenizer(PROMPT)["input_ids"]])
    with torch.inference_mode():
        said = model.model.generate(
            ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=1
        )
    started = 1 if alias in ENCODER_DECODERS else ids.shape[1]
    return [int(each) for each in said[0, started:]]


@pytest.mark.parametrize("alias", ALIASES)
def test_end_tokens_are_the_requests_own(alias: str) -> None:
    tokens = greedy_ids(alias, 12)
    free = asked(alias, max_new_tokens=12, eos_token_ids=())
    ended = asked(alias, max_new_tokens=12, eos_token_ids=(tokens[4], 299))
    assert (free.completion_tokens, free.finish_reason) == (12, "length")
    assert (ended.completion_tokens, ended.finish_reason) == (tokens.index(tokens[4]) + 1, "stop")


@pytest.mark.parametrize("alias", ALIASES)
def test_min_new_tokens_holds_back_the_requests_own_end_tokens(alias: str) -> None:
    first = greedy_ids(alias, 1)[0]
    result = asked(alias, max_new_tokens=6, min_new_tokens=4, eos_token_ids=(first,))
    assert result.completion_tokens >= 4


@pytest.mark.parametrize("alias", ALIASES)
def test_a_stop_string_is_found_across_tokens_and_cut_exactly(alias: str) -> None:
    plain = asked(alias, max_new_tokens=20, eos_token_ids=())
    text = plain.text or ""
    # given a string whose ends are inside of tokens, most likely
    stop = text[5:9]
    result = asked(alias, max_new_tokens=20, eos_token_ids=(), stop=("\x00never", stop))
    assert result.text == text[: text.index(stop)]
    assert result.finish_reason == "stop"
    assert result.completion_tokens <= plain.completion_tokens


@pytest.mark.parametrize("alias", ALIASES)
def test_a_seed_means_the_same_in_any_batch_and_on_any_day(alias: str) -> None:
    first = asked(alias, max_new_tokens=15, temperature=1.5, seed=11)
    alone = by_key(
        windows(
            continuous(alias, rows=1),
            [request(5, PROMPT, max_new_tokens=15, temperature=1.5, seed=11)],
        )
    )[5]
    other = asked(alias, max_new_tokens=15, temperature=1.5, seed=12)
    assert first.text == alone.text
    assert first.text != other.text


@pytest.mark.parametrize("alias", ALIASES)
def test_logprobs_are_those_of_the_models_own_logits(alias: str) -> None:
    # given a row that samples, so that what it takes is not always the likeliest
    parameters: dict[str, Any] = {
        "max_new_tokens": 6,
        "temperature": 1.4,
        "seed": 3,
        "eos_token_ids": (),
    }
    result = asked(alias, logprobs=3, **parameters)
    assert result.text == asked(alias, **parameters).text
    assert result.logprobs is not None
    tokens = [each.token_id for each in result.logprobs]
    # when the model is asked for all positions at once
    expected = torch.log_softmax(logits_of(alias, tokens), dim=-1)  # [6, V]
    # then it says the same
    for step, told in enumerate(result.logprobs):
        assert told.logprob == pytest.approx(float(expected[step, told.token_id]), abs=1e-4)
        best = expected[step].topk(3)
        assert [token for token, _text, _value in told.top] == best.indices.tolist()
        assert [value for *_rest, value in told.top] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        assert told.text == loaded(alias).tokenizer.decode([told.token_id])
    assert asked(alias, max_new_tokens=2).logprobs is None


def test_no_alternatives_but_the_tokens_own_logprob() -> None:
    result = asked("tiny-gpt-neox", max_new_tokens=3, logprobs=0, eos_token_ids=())
    assert result.logprobs is not None
    assert [each.top for each in result.logprobs] == [(), (), ()]
    assert all(each.logprob < 0 for each in result.logprobs)


@pytest.mark.parametrize("alias", ALIASES)
def test_echo_puts_the_prompt_before_the_completion(alias: str) -> None:
    plain = asked(alias, max_new_tokens=4).text or ""
    assert asked(alias, max_new_tokens=4, echo=True).text == PROMPT + plain


def test_a_stop_string_in_an_echoed_prompt_cuts_nothing() -> None:
    result = asked("tiny-bloom", max_new_tokens=4, echo=True, stop=("worker",))
    assert (result.text or "").startswith(PROMPT)


def test_an_echoed_chat_is_what_its_template_made_of_it() -> None:
    engine = continuous("tiny-bloom")
    engine._maker.tokenizer.chat_template = "{{ messages[0]['content'] }}:"
    chat = GenerationRequest(
        key=0,
        prompt=(ChatMessage(role="user", content="once"),),
        parameters=request(0, "", max_new_tokens=2, echo=True).parameters,
    )
    assert (by_key(windows(engine, [chat]))[0].text or "").startswith("once:")


def logits_of(alias: str, tokens: list[int]) -> torch.Tensor:
    """What the model says at each of these new tokens, float32 [T, V], without any cache."""
    model = loaded(alias)
    prompt = model.tokenizer(PROMPT)["input_ids"]
    with torch.inference_mode():
        if alias in ENCODER_DECODERS:
            start = model.model.config.decoder_start_token_id
            decoded = torch.tensor([[start, *tokens[:-1]]])
            logits = model.model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoded).logits
        else:
            logits = model.model(torch.tensor([[*prompt, *tokens[:-1]]])).logits
    return torch.as_tensor(logits[0, -len(tokens) :])
