"""What a store holds beside its tensors: configuration, index, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from worker.engine.model_skeleton import int8_settings
from worker.engine.store_manifest import MANIFEST
from worker.engine.store_plan import StorePlan

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
# As downloaded with a checkpoint: tokenizer, generation settings, chat template.
_COPIED = ("*.json", "*.txt", "*.model", "*.jinja")


def companion_files(source: Path, plan: StorePlan) -> dict[str, bytes]:
    """Name and contents of everything but the tensors."""
    files = {
        path.name: path.read_bytes()
        for pattern in _COPIED
        for path in sorted(source.glob(pattern))
        if path.is_file() and not path.name.endswith(".index.json") and path.name != MANIFEST
    }
    files[CONFIG] = _config(source, plan.load_dtype)
    files[INDEX] = _index(plan)
    return files


def _config(source: Path, dtype: torch.dtype) -> bytes:
    """The checkpoint's own configuration with the quantisation added.

    Not what the library would write: it reads an untied T5 as tied, keeps the
    difference in an attribute, and loses that when it reads its own file.
    """
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the older name of dtype
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["quantization_config"] = int8_settings().to_dict()
    return _json_bytes(config)


def _index(plan: StorePlan) -> bytes:
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
