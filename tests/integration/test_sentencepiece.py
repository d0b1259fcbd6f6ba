"""A tokenizer that is published as a sentencepiece model only."""

from __future__ import annotations

import io
import json
from pathlib import Path

import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.checkpoint.folder import open_checkpoint
from engine.interface import ModelSource
from tests.stores import ignore, never

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}


def write_tokenizer(folder: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter((ROOT / "README.md").read_text().splitlines()),
        model_writer=model,
        vocab_size=600,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))


def test_a_checkpoint_with_a_sentencepiece_model_only_is_loaded(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)

    source = ModelSource(alias="mine", folder=tmp_path)
    tokenizer = open_checkpoint(source, on_progress=ignore, should_stop=never).tokenizer

    tokens = tokenizer("A queue holds prompts", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens) == "A queue holds prompts"
