"""What a request says by itself, from generate(): what the decode loop is held to."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from engine.decode.choice import draw_token, warpers
from engine.decode.row import seeded
from engine.decode.special_tokens import SpecialTokens, special_tokens_of
from engine.decode.stopping import cut_at_stop, text_of_new
from engine.interface import GenerationRequest, SamplingParameters
from engine.quiet import quiet_libraries

# Text, why it ended, and how many tokens it has.
Said = tuple[str | None, str | None, int]


class _Sampler:
    """A logits processor that leaves the drawn token alone, so that the greedy pick takes it."""

    def __init__(self, parameters: SamplingParameters, eos: list[int], started: int) -> None:
        self._generator = seeded(parameters.seed) if parameters.temperature > 0 else None
        self._parameters = parameters
        self._penalties: Any = LogitsProcessorList()
        if parameters.repetition_penalty != 1.0:
            penalty = float(parameters.repetition_penalty)
            self._penalties.append(RepetitionPenaltyLogitsProcessor(penalty))
        if parameters.min_new_tokens and eos:
            self._penalties.append(
                MinNewTokensLengthLogitsProcessor(started, parameters.min_new_tokens, eos)
            )

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raw = scores.clone()
        scores = self._penalties(ids, scores)
        if self._generator is None:
            return scores
        warped = warpers(self._parameters)(ids, scores)
        token = draw_token(warped[0], self._generator, fallback=raw[0])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


class _Stopper:
    """A stopping criterion that decodes everything at every step."""

    def __init__(
        self, tokenizer: Any, stop: tuple[str, ...], eos: list[int], before: list[int], started: int
    ) -> None:
        self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
        self._before, self._started = before, started
        self.is_stopped = False

    def __call__(self, ids: torch.Tensor, _scores: object, **_options: object) -> torch.Tensor:
        tokens = ids[0, self._started :].tolist()
        text = text_of_new(self._tokenizer, self._before, tokens)
        self.is_stopped = tokens[-1] in self._eos or cut_at_stop(text, self._stop)[1]
        return torch.tensor([self.is_stopped])


def new_tokens_alone(
    model: Any, special: SpecialTokens, tokenizer: Any, request: GenerationRequest
) -> tuple[list[int], bool]:
    """The new tokens, and whether something else than their number ended them."""
    parameters = request.parameters
    stated = parameters.eos_token_ids
    eos = list(special.eos if stated is None else stated)
    ids = torch.tensor([_prompt_ids(special, tokenizer, request)])
    is_encoder_decoder = model.config.is_encoder_decoder
    started = 1 if is_encoder_decoder else ids.shape[1]
    before = [] if is_encoder_decoder else ids[0].tolist()
    stopper = _Stopper(tokenizer, parameters.stop, eos, before, started)
    with torch.inference_mode(), quiet_libraries():
        rows = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_settings(parameters, special, eos),
            logits_processor=LogitsProcessorList([_Sampler(parameters, eos, started)]),
            stopping_criteria=StoppingCriteriaList([stopper]),
        )
    return rows[0, started:].tolist(), stopper.is_stopped


def _prompt_ids(special: SpecialTokens, tokenizer: Any, request: GenerationRequest) -> list[int]:
    return tokenizer(request.prompt)["input_ids"] or list(special.blank)


def _settings(parameters: SamplingParameters, special: SpecialTokens, eos: list[int]) -> Any:
    settings = GenerationConfig(
        max_new_tokens=parameters.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=special.pad,
        decoder_start_token_id=special.start,
    )
    # None would be filled from the model's configuration.
    settings.eos_token_id = eos or [-1]
    return settings


def said_alone(model: Any, tokenizer: Any, request: GenerationRequest) -> Said:
    """The completion of one prompt that is run by itself."""
    special = special_tokens_of(model, tokenizer)
    tokens, is_stopped = new_tokens_alone(model, special, tokenizer, request)
    eos = request.parameters.eos_token_ids
    ends = special.eos if eos is None else eos
    spoken = tokens[:-1] if tokens[-1] in ends else tokens
    is_continued = not model.config.is_encoder_decoder
    before = _prompt_ids(special, tokenizer, request) if is_continued else []
    text, _ = cut_at_stop(text_of_new(tokenizer, before, spoken), request.parameters.stop)
    return text, "stop" if is_stopped else "length", len(tokens)
