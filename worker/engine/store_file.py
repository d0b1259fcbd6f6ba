"""Writing one safetensors file of a store as a stream: no tensor is in memory whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from worker.engine.checkpoint_tensors import CheckpointTensors
from worker.engine.engine import LoadInterruptedError
from worker.engine.model_layout import TensorLayout
from worker.engine.quantise import cast_chunks, quantised_chunks
from worker.engine.store_plan import StoreFile, StorePlan
from worker.engine.word_sum import total_of, word_sum

# The tensors' data starts on a page, for reads that go around the page cache.
DATA_ALIGNMENT_BYTES = 4096
# https://github.com/huggingface/safetensors#format
_DTYPE_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
}
# bitsandbytes' only layout of int8 weights.
_ROW_FORMAT = torch.zeros(1, dtype=torch.uint8)


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished file.

    Attributes:
        bytes: Its length.
        sha256: Of all of it.
        word_sum: Of its tensors' data; None for a file of another kind.
    """

    bytes: int
    sha256: str
    word_sum: int | None = None


@dataclass(frozen=True, kw_only=True)
class TensorStream:
    """The bytes of a store's tensors, made from the checkpoint's as they are asked for."""

    plan: StorePlan
    tensors: CheckpointTensors
    device: torch.device
    # Of the weights already quantised, until they are written.
    _scales: dict[str, torch.Tensor] = field(default_factory=dict)

    def chunks(self, tensor: TensorLayout) -> Iterator[torch.Tensor]:
        """Yield one tensor's elements in order."""
        if tensor.role == "format":
            yield _ROW_FORMAT
        elif tensor.role == "int8":
            yield from self._int8_chunks(tensor.model_name)
        elif tensor.role == "scales":
            weight = f"{tensor.model_name.rpartition('.')[0]}.weight"
            if weight not in self._scales:
                # Written before their weight: its rows are of an odd length.
                for _ in self._int8_chunks(weight):
                    pass
            yield self._scales.pop(weight)
        else:
            yield from cast_chunks(self._source(tensor.model_name), tensor.dtype)

    def _int8_chunks(self, name: str) -> Iterator[torch.Tensor]:
        scales = []
        for int8, row_scales in quantised_chunks(
            self._source(name),
            load_dtype=self.plan.load_dtype,
            is_transposed=name in self.plan.transposed,
            device=self.device,
        ):
            scales.append(row_scales)
            yield int8
        self._scales[name] = torch.cat(scales)

    def _source(self, name: str) -> torch.Tensor:
        return self.tensors.tensor(self.plan.source_names[name])


def write_store_file(
    path: Path,
    file: StoreFile,
    stream: TensorStream,
    *,
    on_bytes: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> WrittenFile:
    """Write a file and wait until it is on the disk.

    Args:
        path: Where; whatever is there is overwritten.
        file: What it holds.
        stream: Where that comes from.
        on_bytes: Told how many bytes of tensors were written since it was last.
        should_stop: Asked after every chunk.

    Raises:
        LoadInterruptedError: should_stop() turned true.
        OSError: The disk is full or broken.
    """
    digest = hashlib.sha256()
    sums, position = [0], 0
    with path.open("wb") as output:
        header = safetensors_header(file.tensors)
        output.write(header)
        digest.update(header)
        for tensor in file.tensors:
            for chunk in stream.chunks(tensor):
                data = chunk.reshape(-1).view(torch.uint8).numpy().data
                output.write(data)
                digest.update(data)
                sums.append(word_sum(data, position))
                position += len(data)
                on_bytes(len(data))
                if should_stop():
                    raise LoadInterruptedError
        output.flush()
        os.fsync(output.fileno())
        return WrittenFile(bytes=output.tell(), sha256=digest.hexdigest(), word_sum=total_of(sums))


def safetensors_header(tensors: tuple[TensorLayout, ...]) -> bytes:
    """The length and the JSON that come before the tensors, padded with spaces."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    padding = -(8 + len(text)) % DATA_ALIGNMENT_BYTES
    return (len(text) + padding).to_bytes(8, "little") + text + b" " * padding


def sha256_of(path: Path, *, on_bytes: Callable[[int], None]) -> str:
    """The SHA-256 of a file, read in pieces.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()
