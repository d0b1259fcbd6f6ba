"""Per-row sampling inside one batch of transformers' stock generate().

generate() knows one set of sampling parameters for a whole batch. Here every
row that asks for more than plain greedy decoding goes through transformers'
own processors on its real tokens alone, and a sampled row draws from its own
generator; all but the drawn token is then masked, so that the greedy pick of
generate() takes it. A row's tokens therefore depend on its logits, parameters
and seed, and not on its batch mates.
"""

from __future__ import annotations

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

from worker.engine.engine import SamplingParameters

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
