"""Writing one safetensors file of a store as a stream: no tensor is in memory whole."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.checkpoint.folder import Checkpoint
from engine.checkpoint.tensors import CheckpointTensors
from engine.int8.quantise import cast_chunks, quantised_chunks
from engine.interface import LoadInterruptedError
from engine.layout.blocks import TensorLayout
from engine.layout.skeleton import int8_settings
from engine.store.checksum import total_of, word_sum
from engine.store.contents import StoreContents, StoreFile
from engine.store.header import safetensors_header
from engine.store.manifest import MANIFEST, WrittenFile

# bitsandbytes' only layout of int8 weights.
_ROW_FORMAT = torch.zeros(1, dtype=torch.uint8)


@dataclass(frozen=True, kw_only=True)
class TensorStream:
    """The bytes of a store's tensors, made from the checkpoint's as they are asked for."""

    plan: StoreContents
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


CONFIG = "config.json"


INDEX = "model.safetensors.index.json"


# As downloaded with a checkpoint: tokenizer, generation settings, chat template.
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja")


def companion_files(checkpoint: Checkpoint, plan: StoreContents) -> dict[str, bytes]:
    """Name and contents of everything but the tensors."""
    source = checkpoint.folder
    files = {
        path.name: path.read_bytes()
        for pattern in _COPIED
        for path in sorted(source.glob(pattern))
        if path.is_file() and not path.name.endswith(".index.json") and path.name != MANIFEST
    }
    files[CONFIG] = _config(checkpoint, plan.load_dtype)
    files[INDEX] = _index(plan)
    return files


def _config(checkpoint: Checkpoint, dtype: torch.dtype) -> bytes:
    """The checkpoint's own configuration with the quantisation added.

    Not what the library would write: it reads an untied T5 as tied, keeps the
    difference in an attribute, and loses that when it reads its own file.
    """
    config = json.loads((checkpoint.folder / CONFIG).read_text(encoding="utf-8"))
    if checkpoint.is_text_half:
        # Of the whole, the store holds the model of text, under its own names.
        config = json.loads(checkpoint.config.to_json_string())
        config["architectures"] = [checkpoint.model_class.__name__]
    config.pop("torch_dtype", None)  # the older name of dtype
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = int8_settings(checkpoint.config).to_dict()
    return _json_bytes(config)


def _index(plan: StoreContents) -> bytes:
    """Which file holds which tensor, for plain transformers."""
    files = [file for file in plan.files if file.read_by_transformers]
    return _json_bytes(
        {
            "metadata": {"total_size": sum(file.bytes for file in files)},
            "weight_map": {tensor.name: file.name for file in files for tensor in file.tensors},
        }
    )


def _json_bytes(document: object) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
