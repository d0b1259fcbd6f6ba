"""A model that is ready to run: its modules, tokenizer, device and forward passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.layout.blocks import ModelLayout
from engine.weights.loader import LoadedBlock
from engine.weights.passes import ResidentPasses, WeightPasses
from engine.weights.stream import Slot


@dataclass(kw_only=True)
class Int8Model:
    """A model in evaluation mode, its tokenizer, and how its forward passes are run.

    Attributes:
        model: A transformers model.
        tokenizer: The tokenizer of its checkpoint.
        device: The device that computes.
        passes: Runs forward passes.
        layout: The tensors of its store; None for a model that transformers loaded.
        blocks: Each block of the store in its tier; empty for a model that
            transformers loaded.
        slots: Device memory that streamed blocks pass through; none if all are
            resident.
        free: Ends threads and gives back pinned memory; the rest goes with the model.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    passes: WeightPasses = field(default_factory=ResidentPasses)
    layout: ModelLayout | None = None
    blocks: Mapping[str, LoadedBlock] = field(default_factory=dict)
    slots: tuple[Slot, ...] = ()
    free: Callable[[], None] = lambda: None

    @property
    def parameter_count(self) -> int:
        if self.layout is not None:
            return self.layout.parameter_count
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers, wherever they are; a tied head counts once."""
        if self.layout is not None:
            return self.layout.int8_bytes
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
