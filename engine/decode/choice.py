"""The next token of every row of a step.

Plain greedy rows are one argmax over the batch. The others go through
transformers' processors, those of like parameters together, and a sampled row
draws from its own generator. Rows do not see each other anywhere here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.decode.row import ChosenToken, Row
from engine.interface import SamplingParameters


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


def choose_tokens(logits: Sequence[torch.Tensor], rows: Sequence[Row]) -> list[ChosenToken]:
    """Every row's next token; draws from generators, and changes nothing else.

    Args:
        logits: One tensor [R, V] per forward pass, of the model's dtype.
        rows: Rows of the step, in the order of the passes and of the rows in each.
    """
    best = [each.argmax(dim=-1, keepdim=True) for each in logits]
    greedy = torch.cat(best)[:, 0]  # [N]
    # argmax finds a NaN before any number.
    peaks = [each.gather(1, at) for each, at in zip(logits, best, strict=True)]
    is_finite = torch.cat(peaks)[:, 0].isfinite().long()  # [N]
    special = [place for place, row in enumerate(rows) if not row.is_plain]
    if special:
        scores = _scores_at(logits, special)
        told_finite, token_ids = _choose_special(greedy, is_finite, scores, rows, special)
    else:
        told_finite, token_ids = torch.stack([is_finite, greedy]).tolist()
    chosen = [
        ChosenToken(token_id=token_id, is_finite=bool(finite))
        for token_id, finite in zip(token_ids, told_finite, strict=True)
    ]
    told = [place for place, row in enumerate(rows) if _alternatives(row) is not None]
    if told:
        _tell(chosen, told, _scores_at(logits, told), [_alternatives(rows[at]) or 0 for at in told])
    return chosen


def _alternatives(row: Row) -> int | None:
    """How many of the likeliest tokens are told; None if no log-probabilities are."""
    return row.request.parameters.logprobs


def _scores_at(logits: Sequence[torch.Tensor], places: Sequence[int]) -> torch.Tensor:
    """The logits of some rows of all passes, copied to float32 [P, V]."""
    wanted = set(places)
    scores, first = [], 0
    for each in logits:
        here = [place - first for place in range(first, first + len(each)) if place in wanted]
        first += len(each)
        if here:
            scores.append(each[here].float())
    return torch.cat(scores)


def _choose_special(
    greedy: torch.Tensor,
    is_finite: torch.Tensor,
    raw: torch.Tensor,
    rows: Sequence[Row],
    special: Sequence[int],
) -> tuple[list[int], list[int]]:
    """is_finite [N] and token ids of all rows, where raw [P, V] are the special ones' logits."""
    scores = raw.clone()
    by_warpers: dict[tuple[float, int, float], list[int]] = defaultdict(list)
    for at, place in enumerate(special):
        row = rows[place]
        _penalise(scores[at : at + 1], row)
        parameters = row.request.parameters
        if row.generator is not None:
            by_warpers[parameters.temperature, parameters.top_k, parameters.top_p].append(at)
    sampled = sorted(at for places in by_warpers.values() for at in places)
    for places in by_warpers.values():
        warp = warpers(rows[special[places[0]]].request.parameters)
        scores[places] = warp(None, scores[places])
    # All at once: a transfer waits for everything before it.
    told: list[int] = torch.cat([is_finite, greedy, scores.argmax(dim=-1)]).tolist()
    count = len(greedy)
    token_ids = told[count : 2 * count]
    for at, place in enumerate(special):
        token_ids[place] = told[2 * count + at]
    drawn_from = scores[sampled].cpu() if sampled else scores
    for at, row_scores in zip(sampled, drawn_from, strict=False):
        generator = rows[special[at]].generator
        if generator is not None:
            token_ids[special[at]] = draw_token(row_scores, generator, fallback=raw[at])
    return told[:count], token_ids


def _penalise(scores: torch.Tensor, row: Row) -> None:
    """The processors that need a row's own tokens, on its scores [1, V], in place."""
    processors: Any = LogitsProcessorList()
    parameters = row.request.parameters
    if parameters.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(float(parameters.repetition_penalty)))
    if row.holds_back_end:
        processors.append(
            MinNewTokensLengthLogitsProcessor(
                row.given_tokens,
                parameters.min_new_tokens,
                sorted(row.end_tokens),
                device=str(scores.device),
            )
        )
    if row.forced_token is not None:
        processors.append(ForcedBOSTokenLogitsProcessor(row.forced_token))
    if processors:
        seen = torch.tensor([row.tokens], device=scores.device)  # [1, S]
        scores.copy_(processors(seen, scores))


def _tell(
    chosen: list[ChosenToken],
    places: Sequence[int],
    logits: torch.Tensor,
    counts: Sequence[int],
) -> None:
    """Add log-probabilities to the chosen tokens at these places.

    Args:
        chosen: The tokens of all rows; those at places are replaced.
        places: Rows that want log-probabilities.
        logits: float32 [P, V], those of the places.
        counts: How many of the likeliest tokens each of them wants.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    taken = torch.tensor([[chosen[place].token_id] for place in places], device=logits.device)
    own = logprobs.gather(1, taken)[:, 0].tolist()
    top = logprobs.topk(min(max(counts), logprobs.shape[1]), dim=-1)
    values, tokens = top.values.tolist(), top.indices.tolist()
    for at, place in enumerate(places):
        chosen[place] = ChosenToken(
            token_id=chosen[place].token_id,
            is_finite=chosen[place].is_finite,
            logprob=own[at],
            top=tuple(zip(tokens[at][: counts[at]], values[at][: counts[at]], strict=True)),
        )
