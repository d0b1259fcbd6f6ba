"""One micro-batch through transformers' stock generate()."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from engine.decode.choice import RowSampler, sampled_row
from engine.decode.prompts import EncodedPrompt
from engine.decode.special_tokens import SpecialTokens
from engine.decode.stopping import (
    RowProgress,
    RowStopper,
    StopStringWatch,
    cut_at_stop,
    decode_text,
)
from engine.interface import GenerationResult, Window
from engine.layout.families import Family
from engine.quiet import quiet_libraries

# The seam to the model: model.generate, or a stand-in that runs out of memory.
RunModel = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class BatchGenerator:
    """Runs micro-batches on one loaded model.

    Attributes:
        run_model: model.generate.
        tokenizer: Decodes the completions.
        family: Padding and where completions start.
        special_tokens: See there.
        device: Where the model is.
    """

    run_model: RunModel
    tokenizer: Any
    family: Family
    special_tokens: SpecialTokens
    device: torch.device

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, should_stop: Callable[[], bool]
    ) -> tuple[Window, bool]:
        """Generate every row to its end, or until should_stop().

        Returns:
            The micro-batch with its finished rows, and whether it was
            interrupted, so that some rows are missing.
        """
        clock = _Clock(self.device)
        input_ids, attention_mask = self._padded(prompts)
        rows = [
            RowProgress(
                max_new_tokens=prompt.max_new_tokens,
                watch=StopStringWatch(self.tokenizer, prompt.request.parameters.stop),
                eos=frozenset(self._eos(prompt)),
            )
            for prompt in prompts
        ]
        stopper = RowStopper(rows, eos_token_ids=self.special_tokens.eos, should_stop=should_stop)
        sampler = self._sampler(prompts, input_ids.shape[1], clock)
        with torch.inference_mode(), quiet_libraries():
            self.run_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=self._settings(prompts),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([stopper]),
            )
        clock.finish()
        return self._micro_batch(prompts, rows, clock), stopper.was_interrupted

    def _padded(self, prompts: Sequence[EncodedPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, int64 [B, S] each, on the model's device."""
        longest = max(len(prompt.token_ids) for prompt in prompts)
        input_ids = torch.full((len(prompts), longest), self.special_tokens.pad)
        attention_mask = torch.zeros_like(input_ids)
        for row, prompt in enumerate(prompts):
            length = len(prompt.token_ids)
            place = slice(longest - length, None)
            if self.family.padding_side == "right":
                place = slice(0, length)
            input_ids[row, place] = torch.tensor(prompt.token_ids)
            attention_mask[row, place] = 1
        return input_ids.to(self.device), attention_mask.to(self.device)

    def _sampler(self, prompts: Sequence[EncodedPrompt], longest: int, clock: _Clock) -> RowSampler:
        sampled = []
        for row, prompt in enumerate(prompts):
            # An encoder-decoder's rows start with its start token and no padding.
            started = 1 if self.family.is_encoder_decoder else len(prompt.token_ids)
            needs = sampled_row(
                row=row,
                parameters=prompt.request.parameters,
                prompt_tokens=started,
                padding_tokens=0 if self.family.is_encoder_decoder else longest - started,
                eos_token_ids=self._eos(prompt),
                device=self.device,
            )
            if needs is not None:
                sampled.append(needs)
        return RowSampler(sampled, on_first_logits=clock.first_logits)

    def _eos(self, prompt: EncodedPrompt) -> tuple[int, ...]:
        stated = prompt.request.parameters.eos_token_ids
        return self.special_tokens.eos if stated is None else stated

    def _settings(self, prompts: Sequence[EncodedPrompt]) -> Any:
        """Greedy settings of our own, so that none of the checkpoint's leak in."""
        # generate() knows one set of end tokens a batch; RowStopper knows each row's.
        ends_alike = all(prompt.request.parameters.eos_token_ids is None for prompt in prompts)
        return GenerationConfig(
            max_new_tokens=max(prompt.max_new_tokens for prompt in prompts),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(self.special_tokens.eos if ends_alike else ()) or None,
            pad_token_id=self.special_tokens.pad,
            decoder_start_token_id=self.special_tokens.decoder_start,
        )

    def _micro_batch(
        self, prompts: Sequence[EncodedPrompt], rows: Sequence[RowProgress], clock: _Clock
    ) -> Window:
        results = tuple(
            self._result(prompt, row, clock)
            for prompt, row in zip(prompts, rows, strict=True)
            if row.finish_reason is not None
        )
        return Window(
            results=results,
            rows=len(prompts),
            prompt_tokens=sum(result.prompt_tokens for result in results),
            completion_tokens=sum(result.completion_tokens for result in results),
            prefill_seconds=clock.prefill_seconds,
            decode_seconds=clock.decode_seconds,
        )

    def _result(self, prompt: EncodedPrompt, row: RowProgress, clock: _Clock) -> GenerationResult:
        token_ids = row.token_ids
        # An end token that the tokenizer does not know as special is no text either.
        spoken = token_ids[:-1] if token_ids[-1] in self._eos(prompt) else token_ids
        text, was_cut = cut_at_stop(
            decode_text(self.tokenizer, spoken), prompt.request.parameters.stop
        )
        return GenerationResult(
            key=prompt.request.key,
            text=text,
            finish_reason="stop" if was_cut else row.finish_reason,
            prompt_tokens=len(prompt.token_ids),
            completion_tokens=len(token_ids),
            prefill_seconds=clock.prefill_seconds,
            decode_seconds=clock.decode_seconds,
        )


class _Clock:
    """Prefill and decode seconds; a GPU is waited for only at the two marks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0

    def first_logits(self) -> None:
        self.prefill_seconds = self._elapsed()

    def finish(self) -> None:
        self.decode_seconds = self._elapsed() - self.prefill_seconds

    def _elapsed(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter() - self._start
