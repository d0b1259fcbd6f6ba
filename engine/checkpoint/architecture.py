"""The architecture that a configuration describes: which transformers class generates from it."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)

# Where checkpoints of text and images keep the text model, whose own checkpoints
# have "model." and "lm_head." instead.
_TEXT_HALF = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")
_TEXT_HEAD = re.compile(r"^(?:model\.)?language_model\.lm_head\.")
# The same for from_pretrained's key_mapping.
TEXT_HALF_KEYS = {
    r"^(?:model\.)?language_model\.lm_head\.": "lm_head.",
    r"^(?:model\.)?language_model\.(?:model\.)?": "model.",
}


def model_class_of(config: Any) -> Any:
    """The transformers class that generates text from a configuration; None if there is none."""
    kind = type(config)
    if getattr(config, "is_encoder_decoder", False):
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING.get(kind, None)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING and not _is_encoder_only(config):
        return MODEL_FOR_CAUSAL_LM_MAPPING[kind]
    return None


def text_half_of(config: Any) -> Any:
    """The configuration of the model of text, of a model of text and images; else the same."""
    if getattr(config, "is_encoder_decoder", False):
        return config
    text = config.get_text_config(decoder=True)
    if text is config or model_class_of(text) is None:
        return config
    text = deepcopy(text)
    # The whole may be tied where its half says nothing; a head in the files counts before both.
    text.tie_word_embeddings |= bool(getattr(config, "tie_word_embeddings", False))
    for name in ("quantization_config", "dtype"):
        if getattr(text, name, None) is None and getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    return text


def name_in_text_half(name: str) -> str:
    """What a checkpoint of the model of text alone would call a tensor of the whole."""
    if _TEXT_HEAD.match(name):
        return _TEXT_HEAD.sub("lm_head.", name)
    return _TEXT_HALF.sub("model.", name)


def _is_encoder_only(config: Any) -> bool:
    """BERT and its kin have a causal head too, which no published weights fit."""
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
