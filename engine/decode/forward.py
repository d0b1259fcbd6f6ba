"""Calls of a stock model: what goes in, and the logits of the last position that come out.

Masks say which columns of the cache a row has, and positions count its own
tokens, so a row computes the same wherever it stands. BLOOM takes its ALiBi
from the mask, and T5 its relative positions from the columns, which is right
because all rows end in the same one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from engine.device import plain_dtype
from engine.layout.families import Family


class ForwardCalls:
    """One model's forward passes.

    Every call enters inference mode itself, because it may run on a thread of
    its own. Token ids and lengths come as lists from the host.
    """

    def __init__(self, model: Any, family: Family, device: torch.device, pad: int) -> None:
        self._model = model
        self._device = device
        self._pad = pad
        self._dtype = plain_dtype(device)
        self._is_encoder_decoder = family.is_encoder_decoder
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        # Given as 4D, a mask is used as it is; else transformers looks into it
        # and the host waits for the GPU. BLOOM's eager attention wants it 2D.
        self._takes_4d_masks = model.config._attn_implementation == "sdpa"
        # Where rows are of one length, attention is faster without a mask, BLOOM
        # makes its ALiBi once for all rows, and transformers need not look (for
        # which the host waits for the GPU) whether a mask says anything. But
        # GPT-2 looks for padding among the tokens then.
        self._may_leave_mask_out = (
            not self._takes_4d_masks
            or family.is_encoder_decoder
            or model.config.pad_token_id is None
        )

    def decode(
        self,
        tokens: Sequence[int],
        cached: Sequence[int],
        cache: Any,
        source_tokens: Sequence[int] = (),
    ) -> torch.Tensor:
        """One more token of every row.

        Args:
            tokens: One per row.
            cached: How many of its tokens each row has in the cache.
            cache: As wide as the longest of them.
            source_tokens: The same for an encoder-decoder's cross cache.

        Returns:
            Logits [R, V].
        """
        with torch.inference_mode():
            longest = max(cached)
            rows = torch.tensor([tokens, cached]).to(self._device)  # [2, R]
            inputs: dict[str, Any] = {}
            mask = None
            if not self._need_no_mask(cached):
                mask = self._shaped(self._ends_at_edge(rows[1] + 1, longest + 1))
            if self._is_encoder_decoder:
                inputs["encoder_outputs"] = self._any_states(source_tokens)
                if not self._need_no_mask(source_tokens):
                    inputs["attention_mask"] = self._shaped(self._starts_at_edge(source_tokens))
                inputs["decoder_attention_mask"] = mask
                inputs["decoder_input_ids"] = rows[0][:, None]
            else:
                inputs["input_ids"] = rows[0][:, None]
                inputs["attention_mask"] = mask
                if self._takes_positions:
                    inputs["position_ids"] = rows[1][:, None]
            return self._logits(inputs, cache)

    def prefill(self, prompts: Sequence[Sequence[int]], cache: Any) -> torch.Tensor:
        """Whole prompts of a causal model, padded on the left.

        Returns:
            Logits [R, V] of their last tokens.
        """
        with torch.inference_mode():
            lengths = [len(prompt) for prompt in prompts]
            longest = max(lengths)
            tokens = torch.tensor(
                [[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
            ).to(self._device)  # [R, P]
            mask = self._ends_at_edge(torch.tensor(lengths).to(self._device), longest).long()
            inputs: dict[str, Any] = {"input_ids": tokens}
            if not self._need_no_mask(lengths):
                inputs["attention_mask"] = mask
            if self._takes_positions:
                inputs["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp(min=0)
            return self._logits(inputs, cache)

    def prefill_part(self, tokens: Sequence[int], past: int, cache: Any) -> torch.Tensor:
        """The next tokens of one long prompt, of which `past` are in the cache already.

        Returns:
            Logits [1, V] of the last of them.
        """
        with torch.inference_mode():
            ids = torch.tensor([list(tokens)]).to(self._device)  # [1, T]
            seen = past + len(tokens)
            mask = torch.ones((1, seen), dtype=torch.long, device=self._device)
            inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
            if self._takes_positions:
                inputs["position_ids"] = torch.arange(past, seen, device=self._device)[None]
            return self._logits(inputs, cache)

    def encode(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The encoder's output of each prompt, [S, W] without padding."""
        with torch.inference_mode():
            lengths = [len(prompt) for prompt in prompts]
            tokens = torch.tensor(
                [[*prompt, *[self._pad] * (max(lengths) - len(prompt))] for prompt in prompts]
            ).to(self._device)  # [R, S]
            mask = None
            if not self._need_no_mask(lengths):
                mask = self._starts_at_edge(lengths).long()
            encoder = self._model.get_encoder()
            states = encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
            # Copies, so that the padding is not held with them.
            return [row[:length].clone() for row, length in zip(states, lengths, strict=True)]

    def start(self, states: Sequence[torch.Tensor], start_token: int, cache: Any) -> torch.Tensor:
        """A decoder's first token, on encoder outputs [S, W] of its own for each row.

        Returns:
            Logits [R, V].
        """
        with torch.inference_mode():
            padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)  # [R, S, W]
            inputs: dict[str, Any] = {
                "encoder_outputs": BaseModelOutput(last_hidden_state=padded),
                "decoder_input_ids": torch.full((len(states), 1), start_token, device=self._device),
            }
            lengths = [len(row) for row in states]
            if not self._need_no_mask(lengths):
                inputs["attention_mask"] = self._shaped(self._starts_at_edge(lengths))
            return self._logits(inputs, cache)

    @staticmethod
    def own_cache() -> Any:
        """An empty cache for a prompt that is read in parts."""
        return DynamicCache()

    def _logits(self, inputs: dict[str, Any], cache: Any) -> torch.Tensor:
        output = self._model(
            **inputs, **self._last_only, past_key_values=cache, use_cache=True, return_dict=True
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _need_no_mask(self, lengths: Sequence[int]) -> bool:
        return self._may_leave_mask_out and min(lengths) == max(lengths)

    def _ends_at_edge(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Which of so many columns are a row's, the last `lengths` of them: bool [R, C]."""
        return torch.arange(width, device=self._device) >= (width - lengths)[:, None]

    def _starts_at_edge(self, lengths: Sequence[int]) -> torch.Tensor:
        """The same for rows that start in the first column: bool [R, C]."""
        columns = torch.arange(max(lengths), device=self._device)
        return columns < torch.tensor(lengths).to(self._device)[:, None]

    def _shaped(self, mask: torch.Tensor) -> torch.Tensor:
        return mask[:, None, None, :] if self._takes_4d_masks else mask.long()

    def _any_states(self, source_tokens: Sequence[int]) -> Any:
        """Stands in for encoder outputs of which only the shape is still looked at."""
        blank = torch.zeros((1, 1, 1), dtype=self._dtype, device=self._device)
        return BaseModelOutput(
            last_hidden_state=blank.expand(len(source_tokens), max(source_tokens), 1)
        )
