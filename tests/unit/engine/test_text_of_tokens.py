"""Prompt and completion together are the text that their tokens spell."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from engine.decode.stopping import StopStringWatch, cut_at_stop, decode_text, text_of_new

LINES = (
    "the queue holds shards and the worker takes one shard at a time",
    "every prompt is written to the database, before a message is sent.",
    "une clé n'est jamais perdue; жизнь идёт",
)
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )


def _byte_level_bpe_with_prefix_space() -> Tokenizer:
    tokenizer = _byte_level_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _llama_bpe() -> Tokenizer:
    """Like Llama 2: spaces as a letter, bytes for what is unknown, the first space stripped."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL + BYTES, limit_alphabet=30)
    stored = json.loads(_trained(tokenizer, trainer).to_str())
    # The trainer took the bytes as special tokens, which are no text.
    stored["added_tokens"] = stored["added_tokens"][: len(SPECIAL)]
    return Tokenizer.from_str(json.dumps(stored))


def _metaspace_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))


def _metaspace_unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _trained(
        tokenizer,
        trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>"),
    )


def _unigram_with_bytes() -> Tokenizer:
    pieces = ["▁", "▁the", "▁shard", "s", "▁work", "er", *"abcdefghijklmnopqrstuvwxyz.,"]
    vocabulary = [(each, 0.0) for each in SPECIAL] + [(each, -9.0) for each in BYTES]
    vocabulary += [(each, -4.0 - place / 10) for place, each in enumerate(dict.fromkeys(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _trained(tokenizer, trainers.WordLevelTrainer(special_tokens=SPECIAL))


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    trainer.show_progress = False
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


MAKERS: tuple[Callable[[], Tokenizer], ...] = (
    _byte_level_bpe,
    _byte_level_bpe_with_prefix_space,
    _llama_bpe,
    _metaspace_bpe,
    _metaspace_unigram,
    _unigram_with_bytes,
    _word_piece,
    _word_level,
)
of_every_type = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__[1:])


@cache
def made(make: Callable[[], Tokenizer]) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=make(), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


texts = st.lists(
    st.sampled_from(
        [" ", "  ", "the", " shard", "worker", "clé", "жизнь", "中文", "🙂", ".", "\n", "x"]
    ),
    max_size=12,
).map("".join)


def token_lists(tokenizer: Any) -> st.SearchStrategy[list[int]]:
    """Tokens of a text, then any tokens at all, as a model with odd weights says them."""
    spelt = texts.map(lambda text: tokenizer(text)["input_ids"])
    drawn = st.lists(st.integers(0, len(tokenizer) - 1), max_size=10)
    return st.tuples(spelt, drawn, spelt).map(lambda parts: [token for p in parts for token in p])


@of_every_type
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_prompt_and_completion_are_the_text_of_all_tokens_at_every_cut(
    make: Callable[[], Tokenizer], data: st.DataObject
) -> None:
    tokenizer = made(make)
    tokens = data.draw(token_lists(tokenizer))
    whole = decode_text(tokenizer, tokens)
    for cut in range(len(tokens) + 1):
        prompt = decode_text(tokenizer, tokens[:cut])
        completion = StopStringWatch(tokenizer, (), tokens[:cut]).text(tokens[cut:])
        # Bytes that end the prompt and are no character yet belong to the completion.
        settled = prompt if whole.startswith(prompt) else prompt.rstrip("\ufffd")
        if whole.startswith(settled):
            assert settled + completion == whole
        else:  # an invalid byte after the cut has changed the text before it
            assert "\ufffd" in completion


@of_every_type
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_stop_string_is_found_with_the_token_that_completes_it_at_every_cut(
    make: Callable[[], Tokenizer], data: st.DataObject
) -> None:
    tokenizer = made(make)
    tokens = data.draw(token_lists(tokenizer))
    cut = data.draw(st.integers(0, len(tokens)))
    prompt, new = tokens[:cut], tokens[cut:]
    texts_so_far = [text_of_new(tokenizer, prompt, new[:n]) for n in range(1, len(new) + 1)]
    text = texts_so_far[-1] if texts_so_far else ""
    if not text.strip("\ufffd"):
        return
    place = data.draw(st.integers(0, len(text) - 1))
    stop = text[place : place + data.draw(st.integers(1, 6))].strip("\ufffd")
    if not stop or "\ufffd" in stop:
        return
    watch = StopStringWatch(tokenizer, (stop,), prompt)
    found = [watch.is_found(new[:n]) for n in range(1, len(new) + 1)]
    expected = [cut_at_stop(each, (stop,))[1] for each in texts_so_far]
    assert found.index(True) == expected.index(True)


def test_the_space_before_the_first_word_of_a_completion_is_kept() -> None:
    tokenizer = made(_llama_bpe)
    prompt, new = (tokenizer(text)["input_ids"] for text in ("the worker", "takes"))
    assert decode_text(tokenizer, [*prompt, *new]) == "the worker takes"
    watch = StopStringWatch(tokenizer, (" takes",), prompt)
    assert watch.text(new) == " takes"
    assert watch.is_found(new)


def test_bytes_of_characters_that_the_tokenizer_lacks_are_text() -> None:
    tokenizer = made(_llama_bpe)
    prompt, new = (tokenizer(text)["input_ids"] for text in ("the 中", "文"))
    assert StopStringWatch(tokenizer, (), prompt).text(new) == " 文"


def test_the_completion_of_an_encoder_decoder_is_a_text_of_its_own() -> None:
    tokenizer = made(_llama_bpe)
    assert StopStringWatch(tokenizer, ()).text(tokenizer("takes")["input_ids"]) == "takes"
