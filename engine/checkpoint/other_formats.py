"""Checkpoints in formats that this project does not run, named with what to do about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine.interface import ModelLoadError

_ADAPTER = "adapter_config.json"


# What transformers runs as it is, besides 8 bits by bitsandbytes.
_RUN_AS_IT_IS = ("fp8", "fbgemm_fp8")


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that holds an adapter, alone or beside the weights of a model.

    Raises:
        ModelLoadError: It does; the message names the adapter's base model.
    """
    if not (folder / _ADAPTER).is_file():
        return
    base, kind = _adapter_facts(folder / _ADAPTER)
    merge = (
        "merge it into that model (merge_and_unload() and save_pretrained() of the peft library)"
    )
    if (folder / "config.json").is_file():
        raise ModelLoadError(
            f"{folder} holds {kind} adapter of {base} beside a model, and adapters are not "
            f"applied here: {merge}, or remove {_ADAPTER} to run the model without it"
        )
    raise ModelLoadError(
        f"{folder} holds {kind} adapter of {base} and not a whole model: {merge}, and give the "
        "folder that this writes"
    )


def _adapter_facts(path: Path) -> tuple[str, str]:
    """The base model of an adapter, and its kind with an article."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        base, kind = facts.get("base_model_name_or_path"), facts.get("peft_type")
    except (ValueError, AttributeError, OSError, RecursionError):
        base, kind = None, None
    return str(base or "another model"), f"a {kind}" if kind else "an"


def refuse_gguf(folder: Path) -> None:
    """Refuse a folder that holds GGUF files; for one without other weights.

    Raises:
        ModelLoadError: It does.
    """
    files = sorted(path.name for path in folder.glob("*.gguf"))
    if files:
        raise ModelLoadError(
            f"{folder} holds a model as a GGUF file ({files[0]}), which is llama.cpp's format "
            "and is not run here: give the model's original checkpoint, which has config.json "
            "and .safetensors files; it is made int8 here"
        )


def refuse_other_quantisation(config: Any, folder: Path) -> None:
    """Refuse a checkpoint that is quantised in a way that is not run here.

    Args:
        config: Its transformers configuration.
        folder: Its folder, for the message.

    Raises:
        ModelLoadError: It is; the message names the method.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return
    facts = stated if isinstance(stated, dict) else stated.to_dict()
    method = str(facts.get("quant_method") or "bitsandbytes").lower()
    if method in _RUN_AS_IT_IS or (method == "bitsandbytes" and facts.get("load_in_8bit")):
        return
    bits = " to 4 bits" if method == "bitsandbytes" else ""
    raise ModelLoadError(
        f"{folder} is quantised already, with {method}{bits}, which is not run here: give the "
        "checkpoint that it was made of, in float16, bfloat16 or float32; it is made int8 here"
    )
