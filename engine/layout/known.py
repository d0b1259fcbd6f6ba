"""A model's configuration, from where it can be had without a hub and without weights."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from engine.checkpoint.architecture import model_class_of, text_half_of
from engine.interface import ModelLoadError, ModelSource
from engine.layout.blocks import config_of_shape
from engine.quiet import quiet_libraries


def known_config(source: ModelSource) -> Any:
    """The configuration of a folder, a model whose shape is known, or one downloaded before.

    Raises:
        ModelLoadError: It is nowhere to be had, or cannot be used.
    """
    if source.folder is not None:
        if not (source.folder / "config.json").is_file():
            raise ModelLoadError(
                f"there is no config.json in {source.folder}: give a folder that holds one"
            )
        return _read(str(source.folder), None)
    try:
        return config_of_shape(source.alias)
    except KeyError:
        return _downloaded(source)


def _downloaded(source: ModelSource) -> Any:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        str(source.hub_id), "config.json", revision=source.revision or "main"
    )
    if not isinstance(found, str):
        raise ModelLoadError(
            f"the shape of {source.alias} is not known here: download {source.hub_id}'s "
            "config.json, and give its folder in the place of the model, or prepare the model "
            f"first: tgp-jobs prepare {source.alias}"
        )
    return _read(str(source.hub_id), source.revision)


def _read(place: str, revision: str | None) -> Any:
    try:
        with quiet_libraries():
            config = text_half_of(
                AutoConfig.from_pretrained(
                    place, revision=revision, local_files_only=True, trust_remote_code=False
                )
            )
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ModelLoadError(
            f"the configuration of {place} cannot be used; code that comes with a checkpoint is "
            f"never run. transformers said: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    if model_class_of(config) is None:
        raise ModelLoadError(
            f"{place} holds a {config.model_type} model, which is neither a causal language model "
            "nor an encoder-decoder and cannot generate text; choose one of those"
        )
    return config
