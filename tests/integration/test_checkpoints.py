"""The tiny checkpoints in examples/ are what the demo and the other tests take them for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from examples.documentation import REPOSITORY, documentation_files, read_paragraphs
from examples.tiny_families import CONTEXT_TOKENS, FAMILIES, TinyFamily
from examples.train_checkpoints import CHECKPOINTS, complete
from examples.training_rows import perplexity

MOST_BYTES = 2 * 1024**2
MOST_PARAGRAPHS = 80  # enough for a steady figure, and soon read

EVERY_BYTE = bytes(range(256)).decode("latin-1")
ODD_TEXTS = (
    "",
    " ",
    "\x00\x01",
    "\u4e16\u754c",
    "\U0001f600 e\u0301 \ufeff",
    EVERY_BYTE,
    "a" * 600,
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One family's folder, loaded as a user would load it."""

    family: TinyFamily
    folder: Path
    model: Any  # in float32
    tokenizer: Any

    def load(self, **options: Any) -> Any:
        return _load_model(self.family, self.folder, **options)

    def perplexity_of(self, model: Any, paragraphs: list[str]) -> float:
        return perplexity(
            model,
            self.tokenizer,
            paragraphs,
            is_encoder_decoder=self.family.is_encoder_decoder,
        )


def _load_model(family: TinyFamily, folder: Path, **options: Any) -> Any:
    auto = AutoModelForSeq2SeqLM if family.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, local_files_only=True, **options).eval()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    # Several threads only wait for each other on matrices this small.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.alias, scope="module")
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    family: TinyFamily = request.param
    folder = CHECKPOINTS / family.alias
    return Checkpoint(
        family=family,
        folder=folder,
        model=_load_model(family, folder, dtype=torch.float32),
        tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True),
    )


@pytest.fixture(scope="module")
def paragraphs() -> list[str]:
    """Text that the checkpoints were trained on, from all over the README."""
    everything = read_paragraphs([REPOSITORY / "README.md"])
    return everything[:: max(1, len(everything) // MOST_PARAGRAPHS)]


@pytest.fixture(scope="module")
def openings(paragraphs: list[str]) -> list[str]:
    """The first words of plain sentences."""
    prose = [text for text in paragraphs if re.match(r"[A-Z][a-z]* ([a-z]+ ){4}", text)]
    return [" ".join(text.split()[:4]) for text in prose[:6]]


def test_a_checkpoint_is_small_enough_to_commit(checkpoint: Checkpoint) -> None:
    size_bytes = sum(path.stat().st_size for path in checkpoint.folder.iterdir())
    assert size_bytes <= MOST_BYTES


def test_the_saved_weights_are_finite_float16(checkpoint: Checkpoint) -> None:
    saved = checkpoint.load(dtype="auto")
    config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float16"
    assert all(torch.isfinite(weight).all() for weight in saved.parameters())


def test_the_tokenizer_knows_the_context(checkpoint: Checkpoint) -> None:
    assert checkpoint.tokenizer.model_max_length == CONTEXT_TOKENS
    assert len(checkpoint.tokenizer) == checkpoint.model.config.vocab_size


def test_only_tiny_bloom_has_a_chat_template(checkpoint: Checkpoint) -> None:
    has_template = checkpoint.tokenizer.chat_template is not None
    assert has_template == (checkpoint.family.alias == "tiny-bloom")


def test_only_tiny_cerebras_has_no_padding_token(checkpoint: Checkpoint) -> None:
    has_padding = checkpoint.tokenizer.pad_token_id is not None
    assert has_padding == (checkpoint.family.alias != "tiny-cerebras")


def test_ascii_text_survives_the_tokenizer(checkpoint: Checkpoint) -> None:
    text = (
        "The worker (one child) runs `tgp-jobs submit prompts.jsonl --model=bloom-7b1`; ~{x}@#$%^&*"
    )
    tokens = checkpoint.tokenizer.encode(text)
    decoded = checkpoint.tokenizer.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert decoded == text


@pytest.mark.parametrize("text", ODD_TEXTS, ids=ascii)
def test_any_text_can_be_encoded(checkpoint: Checkpoint, text: str) -> None:
    tokens = checkpoint.tokenizer.encode(text, verbose=False)
    assert all(0 <= token < len(checkpoint.tokenizer) for token in tokens)


def test_the_head_is_tied_where_the_large_relative_ties_it(checkpoint: Checkpoint) -> None:
    embedding = checkpoint.model.get_input_embeddings().weight
    head = checkpoint.model.get_output_embeddings().weight
    is_tied = embedding.data_ptr() == head.data_ptr()
    assert is_tied == (checkpoint.family.relative in {"bloom-7b1", "Cerebras-GPT-13B"})


def test_loading_twice_gives_the_same_logits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    again = checkpoint.load(dtype=torch.float32)
    encoded = checkpoint.tokenizer(
        "The database is the ledger", return_tensors="pt", return_token_type_ids=False
    )
    if checkpoint.family.is_encoder_decoder:
        encoded["decoder_input_ids"] = torch.tensor([[0]])
    with torch.inference_mode():
        assert torch.equal(again(**encoded).logits, checkpoint.model(**encoded).logits)


def test_an_opening_is_continued_with_words_of_the_documentation(
    checkpoint: Checkpoint, openings: list[str]
) -> None:
    known = set(re.findall(r"\w+", " ".join(read_paragraphs(documentation_files()))))

    said = " ".join(
        complete(checkpoint.model, checkpoint.tokenizer, opening, max_new_tokens=24)
        for opening in openings
    )

    words = re.findall(r"\w+", said)
    assert len(words) >= 3 * len(openings)
    assert sum(word.isascii() for word in words) >= 0.9 * len(words)
    assert sum(word in known for word in words) >= 0.7 * len(words)


def test_completions_end_by_themselves(checkpoint: Checkpoint, openings: list[str]) -> None:
    ended = 0
    for opening in openings:
        encoded = checkpoint.tokenizer(opening, return_tensors="pt", return_token_type_ids=False)
        with torch.inference_mode():
            tokens = checkpoint.model.generate(
                **encoded,
                do_sample=False,
                max_new_tokens=120,
                pad_token_id=checkpoint.tokenizer.pad_token_id or 0,
            )[0]
        ended += int(tokens[-1]) == checkpoint.tokenizer.eos_token_id
    assert ended >= len(openings) / 2


def test_it_has_learned(checkpoint: Checkpoint, paragraphs: list[str]) -> None:
    measured = checkpoint.perplexity_of(checkpoint.model, paragraphs)
    assert measured < len(checkpoint.tokenizer) / 10


@pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning")
def test_int8_keeps_its_perplexity(checkpoint: Checkpoint, paragraphs: list[str]) -> None:
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0)
    int8 = checkpoint.load(dtype=torch.float32, quantization_config=config, device_map={"": "cpu"})
    reference = checkpoint.perplexity_of(checkpoint.model, paragraphs)
    measured = checkpoint.perplexity_of(int8, paragraphs)
    assert measured == pytest.approx(reference, rel=0.05)
