"""Calls of a stock model: what goes in, and the logits of the last position that come out.

Masks say which columns of the cache a row has, and positions count its own
tokens, so a row computes the same wherever it stands. BLOOM takes its ALiBi
from the mask; T5's relative positions, MPT's ALiBi and sliding windows are
distances between columns, which are right because all rows end in the same one.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from engine.cache.shape import CacheShape
from engine.decode.positions import RowPositions
from engine.device import plain_dtype


class ForwardCalls:
    """One model's forward passes; to be called in inference mode.

    Token ids and lengths come as lists from the host.

    Attributes:
        reads_whole: Whether a prompt has to be read in one pass and without
            padding, because layers hand states from token to token.
        rereads_at: Number of tokens beyond which a row has to be read anew,
            because its rotary frequencies change there; or None.
    """

    def __init__(self, model: Any, shape: CacheShape, device: torch.device, pad: int) -> None:
        """Look at how a model wants to be called.

        Args:
            model: A transformers model in evaluation mode.
            shape: What its layers cache.
            device: Where it computes.
            pad: Token id that fills up rows.
        """
        self._model = model
        self._device = device
        self._pad = pad
        self._dtype = plain_dtype(device)
        self._is_encoder_decoder = model.config.is_encoder_decoder
        takes = inspect.signature(model.forward).parameters
        positions = "decoder_position_ids" if self._is_encoder_decoder else "position_ids"
        self._positions_name = positions if positions in takes else None
        self._cache_name = "past_key_values" if "past_key_values" in takes else "cache_params"
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._positions = RowPositions(model, are_told=self._positions_name is not None)
        self.reads_whole = shape.has_states
        self.rereads_at = self._positions.rereads_at
        # Given as 4D, a mask is used as it is; else transformers looks into it
        # and the host waits for the GPU. Eager attention wants it 2D, and so does
        # whatever makes masks of its own: windows, ALiBi, layers with states.
        self._takes_4d_masks = (
            model.config._attn_implementation == "sdpa"
            and shape.is_uniform
            and not getattr(model.config, "alibi", False)
        )
        # Where rows are of one length, attention is faster without a mask, BLOOM
        # makes its ALiBi once for all rows, and transformers need not look (for
        # which the host waits for the GPU) whether a mask says anything. But
        # GPT-2 looks for padding among the tokens then.
        self._takes_masks = shape.has_columns
        self._may_leave_mask_out = (
            not self._takes_4d_masks
            or self._is_encoder_decoder
            or model.config.get_text_config(decoder=True).pad_token_id is None
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
            cached: Tokens that each row has in the cache.
            cache: As wide as the longest of them.
            source_tokens: Tokens that each row of an encoder-decoder has in the cross cache.

        Returns:
            Logits [R, V].
        """
        longest = max(cached)
        rows = torch.tensor([tokens, cached]).to(self._device)  # [2, R]
        inputs: dict[str, Any] = {}
        mask = None
        if not self._need_no_mask(cached):
            mask = self._shaped(self._ends_at_edge(rows[1] + 1, longest + 1))
        if self._positions_name:
            inputs[self._positions_name] = rows[1][:, None]
        if self._is_encoder_decoder:
            inputs["encoder_outputs"] = self._any_states(source_tokens)
            if not self._need_no_mask(source_tokens):
                inputs["attention_mask"] = self._shaped(self._starts_at_edge(source_tokens))
            inputs["decoder_attention_mask"] = mask
            inputs["decoder_input_ids"] = rows[0][:, None]
        else:
            inputs["input_ids"] = rows[0][:, None]
            inputs["attention_mask"] = mask
        with self._positions.of_rows(cached, [count + 1 for count in cached]):
            return self._logits(inputs, cache)

    def prefill(self, prompts: Sequence[Sequence[int]], cache: Any) -> torch.Tensor:
        """Whole prompts of a causal model, padded on the left.

        Returns:
            Logits [R, V] of their last tokens.
        """
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        tokens = torch.tensor(
            [[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        ).to(self._device)  # [R, P]
        mask = self._ends_at_edge(torch.tensor(lengths).to(self._device), longest).long()
        inputs: dict[str, Any] = {"input_ids": tokens}
        if not self._need_no_mask(lengths):
            inputs["attention_mask"] = mask
        if self._positions_name:
            inputs[self._positions_name] = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        with self._positions.of_rows(None, lengths):
            return self._logits(inputs, cache)

    def prefill_chunk(
        self, tokens: Sequence[int], past: int, length: int, cache: Any
    ) -> torch.Tensor:
        """The next tokens of one long prompt.

        Args:
            tokens: Token ids.
            past: Tokens that are in the cache already.
            length: Tokens of the whole prompt.
            cache: The prompt's own.

        Returns:
            Logits [1, V] of the last of them.
        """
        ids = torch.tensor([list(tokens)]).to(self._device)  # [1, T]
        seen = past + len(tokens)
        mask = torch.ones((1, seen), dtype=torch.long, device=self._device)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        if self._positions_name:
            inputs[self._positions_name] = torch.arange(past, seen, device=self._device)[None]
        with self._positions.of_rows(None, [length]):
            return self._logits(inputs, cache)

    def encode(self, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The encoder's output of each prompt, [S, W] without padding."""
        lengths = [len(prompt) for prompt in prompts]
        tokens = torch.tensor(
            [[*prompt, *[self._pad] * (max(lengths) - len(prompt))] for prompt in prompts]
        ).to(self._device)  # [R, S]
        mask = None
        if not self._need_no_mask(lengths):
            mask = self._starts_at_edge(lengths).long()
        states = self._model.get_encoder()(input_ids=tokens, attention_mask=mask).last_hidden_state
        # Copies, so that the padding is not held with them.
        return [row[:length].clone() for row, length in zip(states, lengths, strict=True)]

    def start(self, states: Sequence[torch.Tensor], start_token: int, cache: Any) -> torch.Tensor:
        """A decoder's first token, on encoder outputs [S, W] of its own for each row.

        Returns:
            Logits [R, V].
        """
        padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)  # [R, S, W]
        first = torch.full((len(states), 1), start_token, device=self._device)
        inputs: dict[str, Any] = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=padded),
            "decoder_input_ids": first,
        }
        if self._positions_name:
            inputs[self._positions_name] = torch.zeros_like(first)
        lengths = [len(row) for row in states]
        if not self._need_no_mask(lengths):
            inputs["attention_mask"] = self._shaped(self._starts_at_edge(lengths))
        with self._positions.of_rows(None, [1] * len(states)):
            return self._logits(inputs, cache)

    @staticmethod
    def own_cache() -> Any:
        """An empty cache for a prompt that is read in chunks."""
        return DynamicCache()

    def _logits(self, inputs: dict[str, Any], cache: Any) -> torch.Tensor:
        output = self._model(
            **inputs,
            **self._last_only,
            **{self._cache_name: cache},
            use_cache=True,
            return_dict=True,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _need_no_mask(self, lengths: Sequence[int]) -> bool:
        is_alike = self._may_leave_mask_out and min(lengths) == max(lengths)
        return is_alike or not self._takes_masks

    def _ends_at_edge(self, lengths: torch.Tensor, width: int) -> torch.Tensor:
        """Which of so many columns are a row's, the last `lengths` of them: bool [R, C]."""
        return torch.arange(width, device=self._device) >= (width - lengths)[:, None]

    def _starts_at_edge(self, lengths: Sequence[int]) -> torch.Tensor:
        """Which columns are a row's, for rows that start in the first column: bool [R, C]."""
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
