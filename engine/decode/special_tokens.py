"""The special tokens of a checkpoint that generation needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The token ids that generation needs, from checkpoint and tokenizer.

    Attributes:
        eos: Every token that ends a completion, of the generation settings and
            of the tokenizer; may be empty.
        pad: Token that fills up rows; masked, so any token will do.
        start: Token that an encoder-decoder's decoder reads first.
        blank: Stands for a prompt of no tokens: the first of the
            beginning-of-text and end tokens, or nothing.
        forced_first: First new token of every completion of an encoder-decoder,
            such as the target language of a translation; None to choose it freely.
    """

    eos: tuple[int, ...]
    pad: int
    start: int
    blank: tuple[int, ...] = ()
    forced_first: int | None = None


def special_tokens_of(model: Any, tokenizer: Any) -> SpecialTokens:
    """The checkpoint's special tokens; a missing pad token is the end token."""
    stated = model.generation_config
    # A chat model often ends its turns with a token that only the tokenizer names.
    ends = (*_as_tuple(stated.eos_token_id), *_as_tuple(tokenizer.eos_token_id))
    eos_ids = tuple(dict.fromkeys(ends))
    pads = (tokenizer.pad_token_id, stated.pad_token_id, *eos_ids, 0)
    pad = next(int(pad) for pad in pads if pad is not None)
    starts = (
        stated.decoder_start_token_id,
        getattr(model.config, "decoder_start_token_id", None),
        stated.bos_token_id,
        pad,
    )
    bos = tokenizer.bos_token_id
    return SpecialTokens(
        eos=eos_ids,
        pad=pad,
        start=next(int(start) for start in starts if start is not None),
        blank=(eos_ids if bos is None else (int(bos),))[:1],
        forced_first=stated.forced_bos_token_id if model.config.is_encoder_decoder else None,
    )


def _as_tuple(token_ids: Any) -> tuple[int, ...]:
    """Settings name no token, one, or a list of them."""
    if token_ids is None:
        return ()
    return tuple(token_ids) if isinstance(token_ids, (list, tuple)) else (int(token_ids),)
