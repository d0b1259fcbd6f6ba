"""A model that is ready to run: its modules, tokenizer, device and forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.layout.blocks import ModelLayout
from engine.weights.passes import ResidentPasses, WeightPasses


@dataclass(kw_only=True)
class Int8Model:
    """A model in evaluation mode, its tokenizer, and how its forward passes are run.

    Attributes:
        layout: Its tensors, where it was loaded by them.
        free: Ends what it holds besides memory, such as threads.
    """

    model: Any
    tokenizer: Any
    device: torch.device
    passes: WeightPasses = field(default_factory=ResidentPasses)
    layout: ModelLayout | None = None
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
