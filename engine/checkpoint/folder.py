"""From a ModelSource to a folder that holds everything a model needs.

Every fault that can be seen without reading weights is found here, before
minutes go into a load, and says what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from engine.checkpoint.architecture import model_class_of, text_half_of
from engine.checkpoint.hub import download_config, download_snapshot
from engine.checkpoint.other_formats import (
    refuse_adapter,
    refuse_gguf,
    refuse_other_quantisation,
)
from engine.checkpoint.tensors import CheckpointTensors
from engine.interface import LoadProgress, ModelLoadError, ModelSource
from engine.quiet import quiet_libraries

# transformers' names, in the order it looks for them.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


# One of them is there wherever there is a tokenizer. transformers makes up an
# empty GPT-2 tokenizer where there is none.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A complete folder and what its configuration says.

    Attributes:
        folder: Holds config.json, tokenizer files and weights.
        config: The transformers configuration; of a model of text and images,
            that of the text half.
        is_text_half: Whether the folder holds a model of text and images.
        model_class: The transformers class that generates from it.
        tokenizer: The tokenizer beside the weights.
        weight_files: Every file of the weights, all present.
        tensors: The tensors of those files.
    """

    folder: Path
    config: Any
    is_text_half: bool = False
    model_class: Any
    tokenizer: Any
    weight_files: tuple[Path, ...]
    tensors: CheckpointTensors


def open_checkpoint(
    source: ModelSource,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
    accept: Callable[[Any], None] = lambda _config: None,
) -> Checkpoint:
    """Find or download a checkpoint and check it.

    Each safetensors file is opened here, once: its header is compared with its
    length. The tokenizer is loaded, because minutes of work on the weights
    would be lost if it turned out later that it cannot be.

    Args:
        source: The model.
        on_progress: Told stage "download" in bytes.
        should_stop: Asked during the download.
        accept: Given the configuration before weights are downloaded; what it
            raises ends this.

    Raises:
        ModelLoadError: It is not there, not complete or not a model that
            generates text.
        LoadInterruptedError: should_stop() turned true during the download.
    """
    if source.folder is not None:
        folder = source.folder.expanduser()
        if not folder.is_dir():
            raise ModelLoadError(
                f"model {source.alias}: there is no folder {folder}; correct `folder` in the "
                "catalogue, or give a `hub_id` to download it"
            )
    elif source.hub_id is not None:
        if (known := download_config(source)) is not None:
            accept(text_half_of(_configuration(known)))
        folder = download_snapshot(source, on_progress=on_progress, should_stop=should_stop)
    else:
        raise ModelLoadError(
            f"model {source.alias}: the catalogue gives neither a hub_id nor a folder; add one"
        )
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        refuse_gguf(folder)
    _read_json(folder / "config.json", what="a Hugging Face checkpoint folder holds one")
    whole = _configuration(folder)
    config = text_half_of(whole)
    refuse_other_quantisation(config, folder)
    model_class = _model_class(config, folder)
    accept(config)
    weight_files = _weight_files(folder)
    return Checkpoint(
        folder=folder,
        config=config,
        is_text_half=config is not whole,
        model_class=model_class,
        tokenizer=_tokenizer(folder),
        weight_files=weight_files,
        tensors=CheckpointTensors(weight_files),
    )


def _read_json(path: Path, *, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise ModelLoadError(
            f"there is no {path.name} in {path.parent}: {what}; copy the whole folder again"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelLoadError(
            f"{path} is not JSON ({error}); copy or download that file again"
        ) from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds no JSON object; copy or download that file again")
    return value


def _configuration(folder: Path) -> Any:
    try:
        with quiet_libraries():
            return AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except (ValueError, KeyError, TypeError, OSError) as error:
        stated = _read_json(folder / "config.json", what="").get("model_type")
        raise ModelLoadError(
            f"{folder / 'config.json'} describes an architecture that the installed transformers "
            f"cannot run (model_type {stated!r}); code that comes with a checkpoint is never run. "
            f"Use a causal or encoder-decoder model of transformers, or upgrade transformers. "
            f"It said: {_first_line(error)}"
        ) from error


def _model_class(config: Any, folder: Path) -> Any:
    """The class that generates text from this configuration."""
    found = model_class_of(config)
    if found is None:
        raise ModelLoadError(
            f"{folder} holds a {config.model_type} model, which is neither a causal language "
            "model nor an encoder-decoder and cannot generate text; choose one of those"
        )
    return found


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelLoadError(
            f"there is no tokenizer in {folder}: expected tokenizer.json (or one of "
            f"{', '.join(_TOKENIZER_FILES[1:])}); copy or download the tokenizer's files too"
        )
    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelLoadError(
            f"the tokenizer in {folder} cannot be loaded ({error}); the folder needs "
            "tokenizer.json and tokenizer_config.json, copy or download them again"
        ) from error


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in _WEIGHT_FILES:
        index = folder / f"{name}.index.json"
        files: tuple[Path, ...]
        if (folder / name).is_file():
            files = (folder / name,)
        elif index.is_file():
            files = _indexed_files(index)
        else:
            continue
        return files
    refuse_gguf(folder)
    raise ModelLoadError(
        f"there are no weights in {folder}: expected one of "
        f"{', '.join(_WEIGHT_FILES)} or an .index.json of their parts; "
        "copy or download the folder again"
    )


def _indexed_files(index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(index, what="").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index} has no weight_map; copy or download that file again")
    files = tuple(index.parent / str(name) for name in sorted(set(weight_map.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelLoadError(
            f"{len(missing)} of {len(files)} weight files are missing in {index.parent}, "
            f"{missing[0]} first; copy or download them again"
        )
    return files


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
