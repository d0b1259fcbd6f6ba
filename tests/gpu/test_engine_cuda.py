"""The engine's promises on a CUDA device."""

from __future__ import annotations

import gc
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

from engine.interface import Engine, GenerationRequest, ModelSource, RequestList, SamplingParameters
from engine.load import load_engine
from engine.quiet import quiet_libraries
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, save_random_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]

# Longest first, as the engine runs them.
PROMPTS = (
    "The worker claims a shard in the database and renews its lease while it works on",
    "Every prompt is written to the database before",
    "The queue holds",
    "A",
)
NEW_TOKENS = 10


def never() -> bool:
    return False


def load(folder: Path) -> Engine:
    source = ModelSource(alias="tiny", folder=folder)
    return load_engine(source, on_progress=lambda _: None, should_stop=never, device="cuda")


def run(engine: Engine, **parameters: Any) -> list[str | None]:
    options = SamplingParameters(**{"max_new_tokens": NEW_TOKENS, **parameters})
    requests = [
        GenerationRequest(key=key, prompt=prompt, parameters=options)
        for key, prompt in enumerate(PROMPTS)
    ]
    batches = engine.generate(RequestList(requests), should_stop=never)
    results = {result.key: result for batch in batches for result in batch.results}
    return [results[key].text for key in range(len(PROMPTS))]


def plain_transformers(folder: Path, *, is_encoder_decoder: bool) -> list[str]:
    kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    with quiet_libraries(), torch.inference_mode():
        model = kind.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0),
            device_map={"": 0},
            dtype=torch.float16,
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="right" if is_encoder_decoder else "left"
        )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True).to("cuda")
        rows = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    start = 0 if is_encoder_decoder else batch["input_ids"].shape[1]
    return list(tokenizer.batch_decode(rows[:, start:], skip_special_tokens=True))


@pytest.mark.parametrize("alias", ALIASES)
def test_greedy_equals_plain_transformers_on_a_ragged_batch(alias: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(alias, tmp_path)
    engine = load(folder)
    assert engine.model.device == "cuda:0"
    assert run(engine) == plain_transformers(folder, is_encoder_decoder=alias == "tiny-flan")
    engine.close()


def test_a_seed_says_the_same_again(tmp_path: Path) -> None:
    engine = load(checkpoint_folder("tiny-bloom", tmp_path))
    assert run(engine, temperature=1.1, seed=3) == run(engine, temperature=1.1, seed=3)
    engine.close()


def test_memory_returns_to_what_it_was_after_close(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-cerebras", tmp_path)
    # given the workspaces that CUDA libraries keep from their first use
    engine = load(folder)
    run(engine)
    engine.close()
    gc.collect()
    baseline_bytes = torch.cuda.memory_allocated()
    # when a model is loaded, used and closed
    engine = load(folder)
    loaded_bytes = torch.cuda.memory_allocated()
    run(engine)
    engine.close()
    # then nothing of it is left
    assert loaded_bytes > baseline_bytes
    assert torch.cuda.memory_allocated() == baseline_bytes


def test_a_micro_batch_too_large_for_the_memory_is_halved(tmp_path: Path) -> None:
    # given memory for more than one row and for fewer than all of them
    engine = load(save_random_checkpoint("tiny-bloom", tmp_path / "tiny-bloom"))
    requests = [
        GenerationRequest(
            key=key, prompt="shard " * 400, parameters=SamplingParameters(max_new_tokens=4)
        )
        for key in range(16)
    ]
    one_row_bytes, all_rows_bytes = (peak_bytes(engine, requests[:rows]) for rows in (1, 16))
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((one_row_bytes + all_rows_bytes) / 2 / total_bytes)
    # when they are all asked for
    try:
        batches = list(engine.generate(RequestList(requests), should_stop=never))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    # then they come in smaller batches, and none is lost
    results = [result for batch in batches for result in batch.results]
    assert sorted(result.key for result in results) == list(range(16))
    assert all(result.error is None for result in results)
    assert sum(batch.out_of_memory_retries for batch in batches) > 0
    engine.close()


def peak_bytes(engine: Engine, requests: list[GenerationRequest]) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    list(engine.generate(RequestList(requests), should_stop=never))
    return torch.cuda.max_memory_reserved()
