"""Positions and rotary frequencies that transformers would take from the whole batch.

Most models are told each row's positions. Some decoders (BART, Marian, M2M-100)
number tokens by the width of the cache, and some rotary embeddings (dynamic NTK,
longrope) choose their frequencies by the longest row. Their modules are wrapped
here, so that a row computes what it would compute alone.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

# Models that read a row anew when it outgrows the short factors of longrope:
# prepare_inputs_for_generation of modeling_phi3.py and its kin.
_REREADING = frozenset({"phi3", "phimoe", "phi4_multimodal"})
_COUNTED = "past_key_values_length"


@dataclass
class _Rows:
    """The rows of the pass that runs.

    Attributes:
        cached: Tokens that each row has in the cache; None if they are all new.
        lengths: Tokens of each row with those of the pass, or of its whole prompt.
    """

    cached: Sequence[int] | None = None
    lengths: Sequence[int] = ()


class RowPositions:
    """Wraps a model's modules that look at the batch, and tells them of each pass's rows."""

    def __init__(self, model: Any, *, are_told: bool) -> None:
        """Wrap what looks at the batch.

        Args:
            model: A transformers model.
            are_told: Whether its forward takes each row's positions.
        """
        self._stack: list[_Rows] = []
        self.rereads_at: int | None = None
        for name, module in list(model.named_modules()):
            if isinstance(module, _CountedEmbedding | _RowRotary):
                module.rows = self  # wrapped for an earlier generate()
            elif name.endswith(".plain"):
                continue
            elif not are_told and _is_counted_embedding(name, module):
                model.set_submodule(name, _CountedEmbedding(module, self))
            elif _depends_on_length(module):
                model.set_submodule(name, _RowRotary(module, self))
        self._find_boundary(model.config.get_text_config(decoder=True))

    @contextmanager
    def of_rows(self, cached: Sequence[int] | None, lengths: Sequence[int]) -> Iterator[None]:
        """Run one forward pass of these rows."""
        self._stack.append(_Rows(cached, lengths))
        try:
            yield
        finally:
            self._stack.pop()

    @property
    def current(self) -> _Rows | None:
        return self._stack[-1] if self._stack else None

    def _find_boundary(self, config: Any) -> None:
        rope = getattr(config, "rope_parameters", None) or {}
        if config.model_type in _REREADING and rope.get("rope_type") == "longrope":
            self.rereads_at = int(rope["original_max_position_embeddings"])


def _is_counted_embedding(name: str, module: torch.nn.Module) -> bool:
    return name.endswith("decoder.embed_positions") and _COUNTED in _arguments(module)


def _depends_on_length(module: torch.nn.Module) -> bool:
    rope_type = getattr(module, "rope_type", None)
    types = rope_type.values() if isinstance(rope_type, dict) else (rope_type,)
    return any(
        isinstance(each, str) and ("dynamic" in each or each == "longrope") for each in types
    )


def _arguments(module: torch.nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


class _CountedEmbedding(torch.nn.Module):
    """Positions of rows that have different numbers of tokens in the cache."""

    def __init__(self, plain: torch.nn.Module, rows: RowPositions) -> None:
        super().__init__()
        self.plain, self.rows = plain, rows
        self._signature = inspect.signature(plain.forward)

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        """Embedded positions, [R, T, W], or as the plain module gives them."""
        pass_rows = self.rows.current
        if pass_rows is None or pass_rows.cached is None:
            plain: torch.Tensor = self.plain(*args, **options)
            return plain
        arguments = self._signature.bind(*args, **options).arguments
        if "position_ids" in arguments:
            arguments["position_ids"] = None
        by_count = defaultdict(list)
        for row, count in enumerate(pass_rows.cached):
            by_count[count].append(row)
        embedded: list[torch.Tensor] = [torch.empty(0)] * len(pass_rows.cached)
        for count, some in by_count.items():
            found = self.plain(**self._for_rows(arguments, some), **{_COUNTED: count})
            found = found.reshape(-1, 1, found.shape[-1])  # [some or 1, 1, W]
            for place, row in enumerate(some):
                embedded[row] = found[place if len(found) > 1 else 0]
        return torch.stack(embedded)

    def _for_rows(self, arguments: dict[str, Any], rows: list[int]) -> dict[str, Any]:
        """The arguments as they would be for some rows: tensors and shapes by row."""
        chosen: dict[str, Any] = {}
        for name, value in arguments.items():
            if name == _COUNTED:
                continue
            if isinstance(value, torch.Tensor):
                chosen[name] = value[rows]
            elif isinstance(value, tuple | torch.Size):
                chosen[name] = torch.Size((len(rows), *value[1:]))
            else:
                chosen[name] = value
        return chosen


class _RowRotary(torch.nn.Module):
    """Rotary frequencies by each row's own length."""

    def __init__(self, plain: torch.nn.Module, rows: RowPositions) -> None:
        super().__init__()
        self.plain, self.rows = plain, rows

    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, [R, T, D] each, of positions [R, T]."""
        options = {} if layer_type is None else {"layer_type": layer_type}
        pass_rows = self.rows.current
        if pass_rows is None:
            plain: tuple[torch.Tensor, torch.Tensor] = self.plain(x, position_ids, **options)
            return plain
        position_ids = position_ids.expand(len(pass_rows.lengths), -1)
        by_kind = defaultdict(list)
        for row, length in enumerate(pass_rows.lengths):
            by_kind[self._kind(length, layer_type)].append(row)
        parts: list[tuple[torch.Tensor, torch.Tensor]] = [(x, x)] * len(pass_rows.lengths)
        for some in by_kind.values():
            last = max(pass_rows.lengths[row] for row in some) - 1
            # The module looks for the largest position.
            ids = torch.nn.functional.pad(position_ids[some], (0, 1), value=last)
            self._forget_lengths(layer_type)
            cos, sin = self.plain(x, ids, **options)
            for place, row in enumerate(some):
                parts[row] = cos[place, :-1], sin[place, :-1]
        return torch.stack([cos for cos, _ in parts]), torch.stack([sin for _, sin in parts])

    def _kind(self, length: int, layer_type: str | None) -> int:
        """Equal for rows that share their frequencies."""
        plain: Any = self.plain
        rope_type = plain.rope_type if layer_type is None else plain.rope_type[layer_type]
        if "dynamic" in rope_type:
            return max(length, int(plain.original_max_seq_len))
        if rope_type == "longrope":
            parameters = plain.config.rope_parameters
            own = parameters if layer_type is None else parameters[layer_type]
            return int(length > own["original_max_position_embeddings"])
        return 0

    def _forget_lengths(self, layer_type: str | None) -> None:
        """Undo what longer rows before have changed."""
        plain: Any = self.plain
        prefix = "" if layer_type is None else f"{layer_type}_"
        original = getattr(plain, f"{prefix}original_inv_freq", None)
        if original is None:
            return
        current = getattr(plain, f"{prefix}inv_freq")
        if current.shape == original.shape:
            plain.register_buffer(
                f"{prefix}inv_freq", original.to(current.device).clone(), persistent=False
            )
        for name in ("max_seq_len_cached", f"{prefix}max_seq_len_cached"):
            if hasattr(plain, name):
                setattr(plain, name, plain.original_max_seq_len)
