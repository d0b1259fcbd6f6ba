"""Embeddings and heads that are not kept as the model's own float matrix.

On the host: a step wants a few lines of an embedding, not all of them. In half
precision where all else is float32: a checkpoint's float16 or bfloat16 numbers
are float32 numbers too, so making them float32 adds bytes and no knowledge, 2 GB
of bloom-7b1. They are made float32 when they are used, a lookup's lines or a
piece of the head at a time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.int8.product import CPU_SCRATCH_BYTES
from engine.store.header import TensorPlace
from engine.store.read import Segment

# Takes line numbers, int64 [n] on the CPU, and returns their lines, [n, width].
ReadLines = Callable[[torch.Tensor], torch.Tensor]


class HostEmbedding(torch.nn.Module):
    """Stands in for a torch.nn.Embedding whose block is in RAM or on disk.

    Streaming the whole matrix would move hundreds of MiB a pass for a few KiB.

    Attributes:
        weight: Stands for the matrix, [lines, width], in shape, dtype and device;
            one zero in memory. Not a parameter, or the model would seem to be there.
    """

    def __init__(
        self,
        lines: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        read_lines: ReadLines,
    ) -> None:
        """An embedding of such a shape, whose output has this dtype and is on this device."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = lines, width
        self.weight = torch.zeros(1, dtype=dtype, device=device).expand(lines, width)
        self._device = device
        self._read_lines = read_lines

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The lines of token ids, int64 [...]: [..., width] on the model's device."""
        wanted, place = torch.unique(ids.reshape(-1).cpu(), return_inverse=True)
        lines = self._read_lines(wanted).to(self._device, self.weight.dtype)
        return lines[place.to(self._device)].reshape(*ids.shape, -1)


def lines_in_ram(matrix: torch.Tensor) -> ReadLines:
    """Reads a matrix, [lines, width] on the CPU."""
    return lambda wanted: matrix.index_select(0, wanted)


def lines_on_disk(segment: Segment, place: TensorPlace) -> ReadLines:
    """Reads a matrix in an open file, line by line; ModelLoadError if it cannot be read."""
    _, width = place.shape
    line_bytes = width * place.dtype.itemsize

    def read(wanted: torch.Tensor) -> torch.Tensor:
        lines = torch.empty(len(wanted), line_bytes, dtype=torch.uint8)
        for line, number in zip(lines, wanted.tolist(), strict=True):
            segment.read(place.offset + number * line_bytes, line)
        return lines.view(place.dtype)

    return read


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
