"""The next token of every row of a step.

Plain greedy rows are one argmax over the batch. The others go through
transformers' processors, those of like parameters together, and a sampled row
draws from its own generator. Rows do not see each other anywhere here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from worker.engine.engine import SamplingParameters
from worker.engine.sampling import draw_token, seeded, warpers


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
