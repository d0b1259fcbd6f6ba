"""Models of random weights of any size: a float checkpoint, and the int8 store of the same.

Every tensor is a piece of one buffer, from a place of its own. So a model of
tens of gigabytes is written as fast as the disk takes it, and the store need
not wait for the checkpoint: both are made from the buffer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from engine.checkpoint.folder import Checkpoint
from engine.checkpoint.tensors import CheckpointTensors
from engine.int8.quantise import cast_chunks
from engine.layout.blocks import TensorLayout, layout_of
from engine.layout.families import family_of
from engine.store.contents import contents_of
from engine.store.header import safetensors_header
from engine.store.maker import StoreMaker
from engine.store.manifest import StoreOrigin
from engine.store.prepare import Int8Store
from engine.store.write import INDEX, TensorStream
from tests.tiny_checkpoints import tiny_tokenizer

# A prime, so that no two rows of a weight are alike though the buffer repeats.
_PERIOD = 4_194_301
_DEVIATION = 0.02


class RandomTensors(CheckpointTensors):
    """The tensors of a checkpoint that is not there."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        """Tensors of a model of this configuration, of one float dtype."""
        self._shapes = _shapes(config)
        most = max(prod(shape) for shape in self._shapes.values()) + _PERIOD
        generator = torch.Generator().manual_seed(7)
        period = torch.randn(_PERIOD, generator=generator).mul_(_DEVIATION).to(dtype)
        self._buffer = period.repeat(-(-most // _PERIOD))

    def names(self) -> list[str]:
        return [*self._shapes]

    def tensor(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1 and name.endswith("weight"):  # a norm
            return self._buffer.new_ones(shape)
        start = crc32(name.encode()) % _PERIOD
        return self._buffer[start : start + prod(shape)].view(shape)

    def first_float_dtype(self) -> torch.dtype:
        return self._buffer.dtype


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    auto_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(config)
    aliases = set(model.all_tied_weights_keys)
    if family_of(config).has_own_head(config):
        aliases.discard("lm_head.weight")
    state = model.state_dict()
    return {name: tuple(state[name].shape) for name in state if name not in aliases}


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """A configuration, and random weights for it."""

    config: Any
    tensors: RandomTensors

    def write_store(self, folder: Path, *, device: torch.device, dtype: torch.dtype) -> Int8Store:
        """Make the int8 store of these weights, with the engine's own code.

        Args:
            folder: The store's.
            device: Where to quantise.
            dtype: Of what is not int8.
        """
        source = folder.with_name(f"{folder.name}-config")
        _write_companions(self.config, source, self.tensors.first_float_dtype())
        checkpoint = Checkpoint(
            folder=source,
            config=self.config,
            model_class=None,
            tokenizer=None,
            weight_files=(),
            tensors=self.tensors,
        )
        plan = contents_of(checkpoint, dtype=dtype)
        stream = TensorStream(plan=plan, tensors=self.tensors, device=device)
        origin = StoreOrigin(
            location="random", commit=None, fingerprint="", quantisation={}, dtype="auto"
        )
        maker = StoreMaker(folder, origin, plan, lambda _: None, lambda: False)
        return Int8Store(
            alias=folder.name,
            config=self.config,
            folder=folder,
            manifest=maker.make(checkpoint, stream),
            layout=plan.layout,
            was_there=False,
        )

    def write_checkpoint(self, folder: Path, dtype: torch.dtype) -> int:
        """Write the float checkpoint, a file per block; return the bytes of its tensors."""
        _write_companions(self.config, folder, dtype)
        blocks = layout_of(self.config).blocks
        block_of = {t.model_name: block.name for block in blocks for t in block.tensors}
        files: dict[str, list[TensorLayout]] = {}
        for name in self.tensors.names():
            layout = TensorLayout(
                name=name,
                model_name=name,
                dtype=dtype,
                shape=tuple(self.tensors.tensor(name).shape),
                role="plain",
                is_parameter=True,
            )
            files.setdefault(f"{block_of.get(name, 'rest')}.safetensors", []).append(layout)
        for file_name, layouts in files.items():
            self._write_file(folder / file_name, tuple(layouts))
        total = sum(layout.bytes for layouts in files.values() for layout in layouts)
        weight_map = {each.name: file for file, layouts in files.items() for each in layouts}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index))
        return total

    def _write_file(self, path: Path, layouts: tuple[TensorLayout, ...]) -> None:
        with path.open("wb") as file:
            file.write(safetensors_header(layouts))
            for layout in layouts:
                for chunk in cast_chunks(self.tensors.tensor(layout.name), layout.dtype):
                    file.write(chunk.view(torch.uint8).numpy().data)


def random_model(config: Any, dtype: torch.dtype) -> RandomModel:
    """Random weights of a float dtype for a configuration."""
    return RandomModel(config=config, tensors=RandomTensors(config, dtype))


def _write_companions(config: Any, folder: Path, dtype: torch.dtype) -> None:
    folder.mkdir(parents=True)
    config.dtype = dtype
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
