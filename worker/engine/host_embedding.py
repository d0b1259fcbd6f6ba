"""An embedding that stays on the host: a step wants a few of its lines, not all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from worker.engine.block_file import Segment, TensorPlace

# Takes line numbers, int64 [n] on the CPU, and returns their lines, [n, width].
ReadLines = Callable[[torch.Tensor], torch.Tensor]


class HostEmbedding(torch.nn.Module):
    """Stands in for a torch.nn.Embedding whose block is in RAM or on disk.

    Streaming the whole matrix would move hundreds of MiB a pass for a few KiB.

    Attributes:
        weight: For its shape and dtype, [lines, width] on the meta device. Not a
            parameter, or the model would seem to be there.
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
        self.weight = torch.empty(lines, width, dtype=dtype, device="meta")
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
