"""Making int8 stores in tests."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engine.interface import LoadProgress, ModelSource
from engine.store.contents import ENGINE_ONLY
from engine.store.prepare import Int8Store, prepare_store
from engine.store.read import StoredBlock
from engine.weights.disk_reader import DiskReader

CPU = torch.device("cpu")


def never() -> bool:
    return False


def ignore(_progress: LoadProgress) -> None:
    return None


def prepare(folder: Path, stores: Path, **options: Any) -> Int8Store:
    """Make the store of a checkpoint folder on the CPU."""
    options = {"device": CPU, "on_progress": ignore, "should_stop": never, **options}
    return prepare_store(ModelSource(alias="mine", folder=folder), stores, **options)


def read_block(block: StoredBlock) -> torch.Tensor:
    """A block's flat buffer, uint8 [buffer_bytes], as streaming reads it; or ModelLoadError."""
    flat = torch.zeros(block.buffer_bytes, dtype=torch.uint8)
    with closing(DiskReader(1)) as reader:
        reader.begin(block, flat).wait()
    return flat


def plain_tensors(store: Path) -> dict[str, torch.Tensor]:
    """What plain transformers reads of a store, by the index it reads."""
    weight_map = json.loads((store / "model.safetensors.index.json").read_text())["weight_map"]
    tensors: dict[str, torch.Tensor] = {}
    for name in sorted(set(weight_map.values())):
        tensors |= load_file(store / name)
    assert set(weight_map) == set(tensors)
    return tensors


def engine_only_tensors(store: Path) -> dict[str, torch.Tensor]:
    """What plain transformers does not read."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(store.glob(f"*.{ENGINE_ONLY}.safetensors")):
        tensors |= load_file(file)
    return tensors


def split_in_two(folder: Path) -> Path:
    """Turn a checkpoint of one safetensors file into one of two and an index."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    names = sorted(tensors)
    whole.unlink()
    weight_map: dict[str, str] = {}
    for part, members in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{part:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in members}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(members, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pickle_weights(folder: Path) -> Path:
    """Turn a checkpoint of one safetensors file into a .bin one."""
    whole = folder / "model.safetensors"
    torch.save(load_file(whole), folder / "pytorch_model.bin")
    whole.unlink()
    return folder
