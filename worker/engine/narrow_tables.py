"""Embeddings and heads that stay in half precision where all else is float32.

A checkpoint's float16 or bfloat16 numbers are float32 numbers too, so making
them float32 adds bytes and no knowledge: 2 GB of bloom-7b1. They are made
float32 when they are used, a lookup's lines or a piece of the head at a time.
"""

from __future__ import annotations

import torch

from worker.engine.int8_product import CPU_SCRATCH_BYTES


class NarrowEmbedding(torch.nn.Module):
    """Stands in for a torch.nn.Embedding; its output is float32.

    Attributes:
        weight: [lines, width] in half precision. A buffer, because transformers
            takes the dtype of a model's first parameter for that of its activations.
    """

    weight: torch.Tensor

    def __init__(self, like: torch.nn.Embedding) -> None:
        """An empty table of this shape; the loader assigns its weight."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = like.num_embeddings, like.embedding_dim
        self.padding_idx = like.padding_idx
        self.register_buffer("weight", None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The lines of token ids, int64 [...]: [..., width]."""
        return torch.nn.functional.embedding(ids, self.weight).float()


class NarrowHead(torch.nn.Module):
    """Stands in for a torch.nn.Linear in float32.

    Attributes:
        weight: [out, in] in half precision; a buffer, as that of NarrowEmbedding.
        bias: float32 [out] or None.
    """

    weight: torch.Tensor
    bias: torch.nn.Parameter | None

    def __init__(self, like: torch.nn.Linear) -> None:
        """An empty head of this shape; the loader assigns its tensors."""
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.register_buffer("weight", None)
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply activations, [..., in], by the weights: [..., out]."""
        rows = x.reshape(-1, x.shape[-1])
        out = rows.new_empty(len(rows), self.out_features)
        lines = max(1, CPU_SCRATCH_BYTES // (self.in_features * rows.element_size()))
        piece = rows.new_empty(min(lines, self.out_features), self.in_features)
        for start in range(0, self.out_features, lines):
            some = self.weight[start : start + lines]
            floats = piece[: len(some)].copy_(some)
            torch.mm(rows, floats.t(), out=out[:, start : start + len(some)])
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)
