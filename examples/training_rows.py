"""Paragraphs as token rows and batches, for training and for perplexity."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from examples.tiny_families import CONTEXT_TOKENS

IGNORED_LABEL = -100  # what transformers' losses leave out
CHAT_SHARE = 0.25

_SENTENCE_START = re.compile(r"(?<=[.:;?!])\s+|\n")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What the model reads and what it must say; the same list in a causal model."""

    input_ids: list[int]
    labels: list[int]


def training_rows(
    paragraphs: Sequence[str], tokenizer: Any, *, is_encoder_decoder: bool, random: Random
) -> list[Row]:
    """One pass over the text: each paragraph once, as a whole or from one of its sentences on."""
    rows: list[Row] = []
    for paragraph in paragraphs:
        starts = [match.end() for match in _SENTENCE_START.finditer(paragraph)]
        text = paragraph[random.choice([0, random.choice(starts)]) if starts else 0 :]
        opening, rest = split_text(text, random)
        if is_encoder_decoder:
            rows += encoder_decoder_rows(opening, rest, tokenizer)
        elif tokenizer.chat_template and random.random() < CHAT_SHARE:
            rows += causal_rows(render_chat(opening, tokenizer) + " " + rest, tokenizer)
        else:
            rows += causal_rows(text, tokenizer)
    return rows


def evaluation_rows(
    paragraphs: Sequence[str], tokenizer: Any, *, is_encoder_decoder: bool
) -> list[Row]:
    """Each paragraph whole; an encoder-decoder model gets its first half and must say the rest."""
    rows: list[Row] = []
    for paragraph in paragraphs:
        if is_encoder_decoder:
            words = paragraph.split()
            half = (len(words) + 1) // 2
            rows += encoder_decoder_rows(" ".join(words[:half]), " ".join(words[half:]), tokenizer)
        else:
            rows += causal_rows(paragraph, tokenizer)
    return rows


def split_text(text: str, random: Random) -> tuple[str, str]:
    """Cut at whitespace: mostly after at most eight words, as a prompt would be."""
    gaps = [match.span() for match in re.finditer(r"\s+", text)]
    if not gaps:
        return text, ""
    start, end = random.choice(gaps[: random.choice([8, 8, 8, len(gaps)])])
    return text[:start], text[end:]


def causal_rows(text: str, tokenizer: Any) -> list[Row]:
    """The text with its end of sequence, cut where the context is full."""
    tokens = [*tokenizer.encode(text, verbose=False), tokenizer.eos_token_id]
    pieces = [tokens[at : at + CONTEXT_TOKENS] for at in range(0, len(tokens), CONTEXT_TOKENS)]
    return [Row(input_ids=piece, labels=piece) for piece in pieces if len(piece) > 1]


def encoder_decoder_rows(opening: str, rest: str, tokenizer: Any) -> list[Row]:
    """The opening for the encoder; the rest, as far as the context reaches, for the decoder."""
    if not rest:
        return []
    # The end-of-sequence token is the last of both, from the tokenizer itself.
    source, target = (tokenizer.encode(text, verbose=False) for text in (opening, rest))
    return [Row(input_ids=source[-CONTEXT_TOKENS:], labels=target[:CONTEXT_TOKENS])]


def render_chat(question: str, tokenizer: Any) -> str:
    """The tokenizer's own chat prompt for one user message."""
    return str(
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
    )


def batches_by_length(
    rows: Sequence[Row], *, tokens_per_batch: int, random: Random
) -> list[list[Row]]:
    """Rows of like length together, in random order, with a budget of padded tokens."""

    def padded_length(row: Row) -> int:
        return max(len(row.input_ids), len(row.labels))

    # Noise in the key lets a row meet other mates in the next pass.
    ordered = sorted(rows, key=lambda row: padded_length(row) * random.uniform(0.9, 1.1))
    batches: list[list[Row]] = [[]]
    longest = 0
    for row in ordered:
        longest = max(longest, padded_length(row))
        if batches[-1] and longest * (len(batches[-1]) + 1) > tokens_per_batch:
            batches.append([])
            longest = padded_length(row)
        batches[-1].append(row)
    random.shuffle(batches)
    return batches


def collate(rows: Sequence[Row], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pad on the right: input_ids, attention_mask and labels, each int64 [B, S]."""

    def pad(sequences: list[list[int]], filler: int) -> torch.Tensor:
        longest = max(len(sequence) for sequence in sequences)
        return torch.tensor([each + [filler] * (longest - len(each)) for each in sequences])

    return {
        "input_ids": pad([row.input_ids for row in rows], pad_token_id),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0),
        "labels": pad([row.labels for row in rows], IGNORED_LABEL),
    }


def perplexity(
    model: Any, tokenizer: Any, paragraphs: Sequence[str], *, is_encoder_decoder: bool
) -> float:
    """The exponential of the mean negative log-likelihood per predicted token, ends included."""
    rows = evaluation_rows(paragraphs, tokenizer, is_encoder_decoder=is_encoder_decoder)
    random = Random(0)  # noqa: S311 - orders batches, guards nothing
    total, tokens = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for rows_of_batch in batches_by_length(rows, tokens_per_batch=2048, random=random):
            batch = collate(rows_of_batch, pad_token_id=tokenizer.pad_token_id or 0)
            labels = batch["labels"] if is_encoder_decoder else batch["labels"][:, 1:]
            predicted = int((labels != IGNORED_LABEL).sum())
            total += float(model(**batch).loss) * predicted
            tokens += predicted
    return math.exp(total / tokens)
