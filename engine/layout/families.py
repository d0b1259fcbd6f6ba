"""What a family of models does differently, in one place.

Nothing here imports torch; a configuration is anything with the attributes of
a transformers config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# transformers gives a tokenizer without a limit a model_max_length of 1e30.
_NO_TOKENIZER_LIMIT = 1_000_000


# BLOOM's ALiBi has no table of positions, but it was trained on this many.
_BLOOM_TRAINED_TOKENS = 2048


def _is_untied(config: object) -> bool:
    return not getattr(config, "tie_word_embeddings", True)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How prompts of one family are laid out and how long they may be.

    Attributes:
        is_encoder_decoder: The prompt goes to an encoder, so prompt and
            completion do not share one context.
        positions: The limit that the configuration states, in tokens, or None.
        trusts_tokenizer: Whether the tokenizer's limit counts where the
            configuration states none.
        has_own_head: Whether a configuration says that the output head is
            not the embedding.
        kept_in_float: Names of linears that are never int8, because the model
            multiplies by their weights itself.
    """

    is_encoder_decoder: bool
    positions: Callable[[object], int | None]
    trusts_tokenizer: bool = True
    has_own_head: Callable[[object], bool] = _is_untied
    kept_in_float: tuple[str, ...] = ()

    def context_tokens(
        self, config: object, *, tokenizer_limit: float, catalogue_limit: int | None
    ) -> int | None:
        """The most tokens a row may span; None where nothing limits it.

        For a causal model that is prompt plus completion; an encoder-decoder
        may use it once on either side.
        """
        stated = self.positions(config)
        if stated is None and self.trusts_tokenizer and tokenizer_limit < _NO_TOKENIZER_LIMIT:
            stated = int(tokenizer_limit)
        limits = [limit for limit in (stated, catalogue_limit) if limit is not None]
        return min(limits, default=None)


def family_of(config: object) -> Family:
    """The family of a configuration, by model type, else a generic one."""
    by_type = _FAMILIES.get(str(getattr(config, "model_type", "")))
    if by_type is not None:
        return by_type
    return _ENCODER_DECODER if getattr(config, "is_encoder_decoder", False) else _CAUSAL


def _stated(*names: str) -> Callable[[object], int | None]:
    """The first of these attributes that holds a positive number."""

    def positions(config: object) -> int | None:
        for name in names:
            value = getattr(config, name, None)
            if isinstance(value, int) and value > 0:
                return value
        return None

    return positions


def _bloom_positions(config: object) -> int:
    return _stated("seq_length")(config) or _BLOOM_TRAINED_TOKENS


def _unlimited(_config: object) -> None:
    """Relative positions and states have no end; T5's n_positions is a training length."""


def _t5_is_untied(config: object) -> bool:
    """To transformers 5 every T5 is tied; it keeps what the file said elsewhere."""
    return _is_untied(config) or not getattr(config, "scale_decoder_outputs", True)


def _causal(
    positions: Callable[[object], int | None], *, kept_in_float: tuple[str, ...] = ()
) -> Family:
    return Family(is_encoder_decoder=False, positions=positions, kept_in_float=kept_in_float)


def _below_temperature_scale(config: object) -> int | None:
    """Llama 4 scales queries by the columns of the batch from floor_scale tokens on.

    Below that a row does not depend on its neighbours (Llama4TextAttention in
    modeling_llama4.py).
    """
    limits = [_POSITIONS(config)]
    if getattr(config, "attn_temperature_tuning", False):
        limits.append(getattr(config, "floor_scale", None))
    return min((int(each) for each in limits if each), default=None)


def _scaled_positions(config: object) -> int | None:
    """Positions as stated, times the factor that a dynamic rotary embedding stretches them by."""
    limit = _POSITIONS(config)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is not None and rope.get("rope_type") == "dynamic":
        return int(limit * rope.get("factor", 1.0))
    return limit


_POSITIONS = _stated("max_position_embeddings", "n_positions", "seq_length", "max_seq_len")
_CAUSAL = _causal(_scaled_positions)
_MAMBA = _causal(_unlimited, kept_in_float=("dt_proj",))
_ENCODER_DECODER = Family(is_encoder_decoder=True, positions=_stated("max_position_embeddings"))
_T5 = Family(
    is_encoder_decoder=True,
    positions=_unlimited,
    # Flan-T5's tokenizer says 512, the length it was fine-tuned at.
    trusts_tokenizer=False,
    has_own_head=_t5_is_untied,
)
_FAMILIES = {
    "bloom": _causal(_bloom_positions),
    "gpt2": _causal(_stated("n_positions", "max_position_embeddings")),
    "gpt_neox": _causal(_stated("max_position_embeddings")),
    "llama4_text": _causal(_below_temperature_scale),
    "mamba": _MAMBA,
    "mamba2": _causal(_unlimited),
    "falcon_mamba": _MAMBA,
    "jamba": _causal(_POSITIONS, kept_in_float=("dt_proj",)),
    "longt5": _T5,
    "t5": _T5,
    "umt5": _T5,
    "mt5": _T5,
}
