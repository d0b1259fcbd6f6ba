"""The next token of every row of a step.

Plain greedy rows are one argmax over the batch. The others go through
transformers' processors, those of like parameters together, and a sampled row
draws from its own generator. Rows do not see each other anywhere here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.interface import SamplingParameters

# torch.Generator takes 64 bits; a negative seed means its two's complement.
_SEED_MASK = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class SampledRow:
    """One row of the batch that is not plain greedy.

    Attributes:
        row: Its place in the batch.
        padding_tokens: Columns before its first real token.
        processors: transformers' processors, in the order generate() has them.
        generator: Where its draws come from; None for a greedy row.
    """

    row: int
    padding_tokens: int
    processors: Any
    generator: torch.Generator | None


class RowSampler:
    """A logits processor with parameters of its own for every row.

    on_first_logits is called once, when the prompt has been read and the
    first token is about to be chosen.
    """

    def __init__(
        self, rows: Sequence[SampledRow], *, on_first_logits: Callable[[], None] = lambda: None
    ) -> None:
        self._rows = rows
        self._on_first_logits = on_first_logits
        self._is_first = True

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Process the scores in place.

        Args:
            input_ids: int64 [B, S], padding on the left.
            scores: float32 [B, V], this step's logits.
        """
        if self._is_first:
            self._is_first = False
            self._on_first_logits()
        for sampled in self._rows:
            ids = input_ids[sampled.row : sampled.row + 1, sampled.padding_tokens :]  # [1, S']
            logits = scores[sampled.row : sampled.row + 1]  # [1, V]
            processed = sampled.processors(ids, logits)
            if sampled.generator is None:
                scores[sampled.row] = processed[0]
                continue
            token = draw_token(processed[0], sampled.generator, fallback=logits[0])
            scores[sampled.row] = -torch.inf
            scores[sampled.row, token] = 0.0
        return scores


def sampled_row(
    *,
    row: int,
    parameters: SamplingParameters,
    prompt_tokens: int,
    padding_tokens: int,
    eos_token_ids: Sequence[int],
    device: torch.device | str,
) -> SampledRow | None:
    """What a row needs beyond the greedy pick; None where that is all it needs.

    prompt_tokens counts the row's real tokens before the first new one: for
    an encoder-decoder the decoder's start token alone.
    """
    processors = LogitsProcessorList()
    if parameters.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(float(parameters.repetition_penalty)))
    if parameters.min_new_tokens > 0 and eos_token_ids:
        processors.append(
            MinNewTokensLengthLogitsProcessor(
                prompt_tokens, parameters.min_new_tokens, list(eos_token_ids), device=str(device)
            )
        )
    is_greedy = parameters.temperature <= 0.0
    if is_greedy and not processors:
        return None
    if not is_greedy:
        processors.extend(warpers(parameters))
    return SampledRow(
        row=row,
        padding_tokens=padding_tokens,
        processors=processors,
        generator=None if is_greedy else seeded(parameters.seed),
    )


def warpers(parameters: SamplingParameters) -> Any:
    """Transformers' processors that look at the scores alone, in the order generate() has them."""
    processors = LogitsProcessorList()
    if parameters.temperature != 1.0:
        processors.append(TemperatureLogitsWarper(float(parameters.temperature)))
    if parameters.top_k > 0:
        processors.append(TopKLogitsWarper(parameters.top_k))
    if parameters.top_p < 1.0:
        processors.append(TopPLogitsWarper(float(parameters.top_p)))
    return processors


def seeded(seed: int) -> torch.Generator:
    """A generator of a row's own."""
    # On the CPU whatever the model's device, so that a seed means the same
    # stream of numbers on every box.
    return torch.Generator(device="cpu").manual_seed(seed & _SEED_MASK)


def draw_token(scores: torch.Tensor, generator: torch.Generator, *, fallback: torch.Tensor) -> int:
    """Draw one token from softmax(scores).

    A temperature next to zero overflows float32; its limit is the greedy pick,
    so that is what fallback, the unprocessed logits, is for.

    Args:
        scores: float32 [V], processed logits, -inf where masked.
        generator: A CPU generator; exactly one draw is taken from it.
        fallback: float32 [V].
    """
    probabilities = torch.softmax(scores.float().cpu(), dim=-1)
    if not bool(torch.isfinite(probabilities).all()):
        return int(torch.argmax(torch.nan_to_num(fallback, nan=-torch.inf)))
    return int(torch.multinomial(probabilities, num_samples=1, generator=generator))


@dataclass(frozen=True, kw_only=True)
class ChosenToken:
    """A token; logprob and top (token id, logprob) only if they were asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(kw_only=True, eq=False)
class TokenChoice:
    """How one row's tokens are chosen.

    Attributes:
        parameters: The request's.
        eos: What min_new_tokens keeps from being chosen.
        seen: The decoder's tokens so far, for the repetition penalty.
        started_tokens: How many there were before the first new one.
        generator: What a sampled row draws from.
    """

    parameters: SamplingParameters
    eos: frozenset[int]
    seen: list[int]
    started_tokens: int
    generator: torch.Generator | None

    @classmethod
    def of(
        cls, parameters: SamplingParameters, eos: frozenset[int], start: Sequence[int]
    ) -> TokenChoice:
        """The choice of a row whose decoder starts with these tokens."""
        return cls(
            parameters=parameters,
            eos=eos,
            seen=list(start),
            started_tokens=len(start),
            generator=seeded(parameters.seed) if parameters.temperature > 0 else None,
        )

    @property
    def holds_back_eos(self) -> bool:
        """Whether the next token may not end the row."""
        new_tokens = len(self.seen) - self.started_tokens
        return bool(self.eos) and new_tokens < self.parameters.min_new_tokens

    @property
    def is_plain(self) -> bool:
        """Whether the next token is just the likeliest."""
        return (
            self.generator is None
            and self.parameters.repetition_penalty == 1.0
            and not self.holds_back_eos
        )


def choose_tokens(
    logits: Sequence[torch.Tensor], choices: Sequence[TokenChoice]
) -> list[ChosenToken]:
    """Every row's next token; draws from generators, and changes nothing else.

    Args:
        logits: One tensor [R, V] per forward pass, of the model's dtype.
        choices: One per row, in the order of the rows of all passes.
    """
    greedy = torch.cat([each.argmax(dim=-1) for each in logits])  # [N]
    special = [place for place, choice in enumerate(choices) if not choice.is_plain]
    if special:
        token_ids = _choose_special(greedy, _rows(logits, special), choices, special)
    else:
        token_ids = greedy.tolist()
    chosen = [ChosenToken(token_id=token_id) for token_id in token_ids]
    told = [place for place, choice in enumerate(choices) if choice.parameters.logprobs is not None]
    if told:
        most = max(choices[place].parameters.logprobs or 0 for place in told)
        _tell(chosen, told, _rows(logits, told), choices, most)
    return chosen


def _rows(logits: Sequence[torch.Tensor], places: Sequence[int]) -> torch.Tensor:
    """Some rows of all passes, copied to float32 [P, V]."""
    wanted = set(places)
    rows, first = [], 0
    for each in logits:
        here = [place - first for place in range(first, first + len(each)) if place in wanted]
        first += len(each)
        if here:
            rows.append(each[here].float())
    return torch.cat(rows)


def _choose_special(
    greedy: torch.Tensor,
    scores: torch.Tensor,
    choices: Sequence[TokenChoice],
    special: Sequence[int],
) -> list[int]:
    """Token ids of all rows, where scores [P, V] are the special ones'."""
    raw = scores
    scores = scores.clone()
    by_warpers: dict[tuple[float, int, float], list[int]] = defaultdict(list)
    for row, place in enumerate(special):
        choice = choices[place]
        _penalise(scores[row : row + 1], choice)
        parameters = choice.parameters
        if choice.generator is not None:
            kind = (parameters.temperature, parameters.top_k, parameters.top_p)
            by_warpers[kind].append(row)
    sampled = sorted(row for rows in by_warpers.values() for row in rows)
    for rows in by_warpers.values():
        warp = warpers(choices[special[rows[0]]].parameters)
        scores[rows] = warp(None, scores[rows])
    # Both at once: a transfer waits for everything before it.
    both = torch.cat([greedy, scores.argmax(dim=-1)]).tolist()
    token_ids: list[int] = both[: len(greedy)]
    drawn_from = scores[sampled].cpu() if sampled else scores
    for row, place in enumerate(special):
        token_ids[place] = both[len(greedy) + row]
    for row, row_scores in zip(sampled, drawn_from, strict=False):
        generator = choices[special[row]].generator
        if generator is not None:
            token_ids[special[row]] = draw_token(row_scores, generator, fallback=raw[row])
    return token_ids


def _penalise(scores: torch.Tensor, choice: TokenChoice) -> None:
    """The processors that need a row's own tokens, on its scores [1, V], in place."""
    processors: Any = LogitsProcessorList()
    parameters = choice.parameters
    if parameters.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(float(parameters.repetition_penalty)))
    if choice.holds_back_eos:
        processors.append(
            MinNewTokensLengthLogitsProcessor(
                choice.started_tokens,
                parameters.min_new_tokens,
                sorted(choice.eos),
                device=str(scores.device),
            )
        )
    if processors:
        seen = torch.tensor([choice.seen], device=scores.device)  # [1, S]
        scores.copy_(processors(seen, scores))


def _tell(
    chosen: list[ChosenToken],
    places: Sequence[int],
    logits: torch.Tensor,
    choices: Sequence[TokenChoice],
    most: int,
) -> None:
    """Add logprobs to the chosen tokens at these places, whose logits are [P, V]."""
    logprobs = torch.log_softmax(logits, dim=-1)
    taken = torch.tensor([[chosen[place].token_id] for place in places], device=logits.device)
    own = logprobs.gather(1, taken)[:, 0].tolist()
    top = logprobs.topk(min(most, logprobs.shape[1]), dim=-1)
    values, tokens = top.values.tolist(), top.indices.tolist()
    for row, place in enumerate(places):
        count = choices[place].parameters.logprobs or 0
        chosen[place] = ChosenToken(
            token_id=chosen[place].token_id,
            logprob=own[row],
            top=tuple(zip(tokens[row][:count], values[row][:count], strict=True)),
        )
