"""From requests to rows: what a request leaves open is filled in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.engine.admission import Claim
from worker.engine.batch_generation import SpecialTokens
from worker.engine.cache_budget import Extent
from worker.engine.engine import GenerationResult
from worker.engine.generated_row import GeneratedRow
from worker.engine.prompt_encoding import EncodedPrompt
from worker.engine.stopping import RowProgress, StopStringWatch
from worker.engine.token_choice import TokenChoice
from worker.engine.waiting_prompts import Waiting


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows of one model's prompts, and results of its rows.

    Attributes:
        tokenizer: Decodes completions.
        special_tokens: The checkpoint's.
        is_encoder_decoder: Whether the prompt is the encoder's.
        part_tokens: A longer prompt is read in parts.
        part_token_bytes: Of a token of such a prompt, in a cache of its own.
    """

    tokenizer: Any
    special_tokens: SpecialTokens
    is_encoder_decoder: bool
    part_tokens: int
    part_token_bytes: int

    @property
    def start_token(self) -> int:
        """What an encoder-decoder's decoder reads first."""
        start = self.special_tokens.decoder_start
        return self.special_tokens.pad if start is None else start

    def claim(self, prompt: EncodedPrompt) -> Claim:
        """What the prompt's row takes at its longest."""
        tokens = len(prompt.token_ids)
        if self.is_encoder_decoder:
            return Claim(extent=Extent(1 + prompt.max_new_tokens, tokens))
        return Claim(
            extent=Extent(tokens + prompt.max_new_tokens),
            held_bytes=tokens * self.part_token_bytes if tokens > self.part_tokens else 0,
        )

    def row(self, waiting: Waiting) -> GeneratedRow:
        """A row without tokens yet."""
        prompt = waiting.prompt
        parameters = prompt.request.parameters
        stated = parameters.eos_token_ids
        eos = frozenset(self.special_tokens.eos if stated is None else stated)
        start = (self.start_token,) if self.is_encoder_decoder else prompt.token_ids
        return GeneratedRow(
            prompt=prompt,
            decoder_tokens=start,
            claim=waiting.claim,
            progress=RowProgress(
                max_new_tokens=prompt.max_new_tokens,
                watch=StopStringWatch(self.tokenizer, parameters.stop),
            ),
            choice=TokenChoice.of(parameters, eos, start),
            eos=eos,
            times=waiting.times,
            states=waiting.states,
        )

    def result(self, row: GeneratedRow) -> GenerationResult:
        return row.result(self.tokenizer)
