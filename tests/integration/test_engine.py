"""The engine on real int8 checkpoints of all four families.

The golden rule: greedy completions equal those of plain transformers with the
same int8 settings on the same batch.
"""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
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

from engine.interface import (
    Engine,
    EngineLoader,
    LoadInterruptedError,
    LoadProgress,
    ModelSource,
    RequestList,
)
from engine.load import load_engine
from engine.quiet import quiet_libraries
from tests.integration.engine_runs import (
    NEW_TOKENS,
    RAGGED_PROMPTS,
    copy,
    edit,
    load,
    never,
    request,
    run,
)
from tests.tiny_checkpoints import ALIASES, ENCODER_DECODERS, checkpoint_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    scratch = tmp_path_factory.mktemp("checkpoints")
    return {alias: checkpoint_folder(alias, scratch) for alias in ALIASES}


@pytest.fixture(scope="session")
def engines(folders: dict[str, Path]) -> Iterator[Callable[[str], Engine]]:
    """One engine per family, loaded when first asked for."""
    loaded: dict[str, Engine] = {}

    def engine(alias: str) -> Engine:
        if alias not in loaded:
            loaded[alias] = load(folders[alias], alias)
        return loaded[alias]

    yield engine
    for each in loaded.values():
        each.close()


def plain_transformers(folder: Path, alias: str, prompts: tuple[str, ...]) -> list[tuple[str, int]]:
    """What transformers itself says: text and new tokens of each prompt in one batch."""
    is_encoder_decoder = alias in ENCODER_DECODERS
    kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    with quiet_libraries(), torch.inference_mode():
        model = kind.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=6.0),
            device_map={"": "cpu"},
            dtype=torch.float32,
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(
            folder, padding_side="right" if is_encoder_decoder else "left"
        )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
        rows = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    eos = model.generation_config.eos_token_id
    start = 1 if is_encoder_decoder else batch["input_ids"].shape[1]
    return [_cut_at_eos(tokenizer, row[start:].tolist(), eos) for row in rows]


def _cut_at_eos(tokenizer: Any, token_ids: list[int], eos: int) -> tuple[str, int]:
    length = token_ids.index(eos) + 1 if eos in token_ids else len(token_ids)
    return tokenizer.decode(token_ids[:length], skip_special_tokens=True), length


@pytest.mark.parametrize("alias", ALIASES)
def test_greedy_equals_plain_transformers_on_a_ragged_batch(
    alias: str, folders: dict[str, Path], engines: Callable[[str], Engine]
) -> None:
    expected = plain_transformers(folders[alias], alias, RAGGED_PROMPTS)
    requests = [request(key, prompt) for key, prompt in enumerate(RAGGED_PROMPTS)]
    # whatever order they come in
    results = run(engines(alias), requests[::-1])
    got = [(results[key].text, results[key].completion_tokens) for key in range(len(requests))]
    assert got == expected


@pytest.mark.parametrize("alias", ALIASES)
def test_a_batch_is_counted_and_timed(alias: str, engines: Callable[[str], Engine]) -> None:
    engine = engines(alias)
    (batch,) = engine.generate(
        RequestList([request(key, prompt) for key, prompt in enumerate(RAGGED_PROMPTS)]),
        should_stop=never,
    )
    assert batch.rows == len(batch.results) == len(RAGGED_PROMPTS)
    assert batch.prefill_seconds > 0
    assert batch.decode_seconds > 0
    assert batch.completion_tokens == sum(result.completion_tokens for result in batch.results)
    assert batch.prompt_tokens == sum(result.prompt_tokens for result in batch.results)
    for result in batch.results:
        # The tenth token may be the one that ends the text.
        assert result.completion_tokens == 10 or result.finish_reason == "stop"
    assert engine.model.compute_mode == "llm_int8"
    assert engine.model.weight_bytes < 4 * engine.model.parameter_count


@pytest.mark.parametrize("alias", ALIASES)
def test_each_row_has_its_own_parameters(alias: str, engines: Callable[[str], Engine]) -> None:
    prompt = RAGGED_PROMPTS[1]
    plain = run(engines(alias), [request(0, prompt)])[0].text or ""
    stop = plain[3:5] or "x"
    results = run(
        engines(alias),
        [
            request(0, prompt, max_new_tokens=3, min_new_tokens=3),
            request(1, prompt, stop=(stop,)),
            request(2, prompt, temperature=1.0, seed=5),
            request(3, prompt, temperature=1.0, seed=5),
            request(4, prompt, temperature=1.0, seed=6, min_new_tokens=10),
        ],
    )
    assert results[0].completion_tokens == 3
    assert results[0].finish_reason == "length"
    assert results[1].text == plain[: plain.find(stop)] if stop in plain else plain
    assert results[1].finish_reason == "stop"
    assert results[2].text == results[3].text
    assert results[4].completion_tokens == 10
    assert results[4].text != results[2].text


def test_a_seed_says_the_same_again(engines: Callable[[str], Engine]) -> None:
    requests = [
        request(key, prompt, temperature=1.2, seed=key) for key, prompt in enumerate(RAGGED_PROMPTS)
    ]
    first = run(engines("tiny-bloom"), requests)
    again = run(engines("tiny-bloom"), requests)
    assert [first[key].text for key in first] == [again[key].text for key in first]


def test_an_empty_completion_is_a_completion(folders: dict[str, Path], tmp_path: Path) -> None:
    # given a checkpoint that ends where it would have said its first token
    folder = copy(folders["tiny-gpt-neox"], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = load(folder)
    prompt = "The queue holds"
    first = run(engine, [request(0, prompt, max_new_tokens=1)])[0].text or ""
    ends = [index for index in range(len(tokenizer)) if tokenizer.decode([index]) == first]
    edit(folder / "generation_config.json", eos_token_id=[tokenizer.eos_token_id, *ends])
    # when it is asked
    result = run(load(folder), [request(0, prompt)])[0]
    # then it says nothing, and that is no error
    assert (result.text, result.finish_reason, result.error) == ("", "stop", None)
    assert result.completion_tokens == 1


def test_sampling_defaults_of_the_checkpoint_do_not_leak(
    folders: dict[str, Path], tmp_path: Path, engines: Callable[[str], Engine]
) -> None:
    folder = copy(folders["tiny-cerebras"], tmp_path)
    edit(
        folder / "generation_config.json",
        do_sample=True,
        temperature=1.9,
        repetition_penalty=3.0,
        num_beams=3,
        no_repeat_ngram_size=1,
    )
    requests = [request(key, prompt) for key, prompt in enumerate(RAGGED_PROMPTS)]
    plain, edited = run(engines("tiny-cerebras"), requests), run(load(folder), requests)
    assert [edited[key].text for key in edited] == [plain[key].text for key in edited]


@pytest.mark.parametrize("alias", ALIASES)
def test_an_int8_store_says_what_the_checkpoint_says(
    alias: str,
    folders: dict[str, Path],
    tmp_path: Path,
    engines: Callable[[str], Engine],
) -> None:
    store = tmp_path / "store"
    shutil.copytree(folders[alias], store, ignore=shutil.ignore_patterns("model*"))
    kind = AutoModelForSeq2SeqLM if alias in ENCODER_DECODERS else AutoModelForCausalLM
    with quiet_libraries():
        kind.from_pretrained(
            folders[alias],
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
            device_map={"": "cpu"},
            dtype=torch.float32,
        ).save_pretrained(store)
    requests = [request(key, prompt) for key, prompt in enumerate(RAGGED_PROMPTS)]
    expected, results = run(engines(alias), requests), run(load(store), requests)
    assert [results[key].text for key in results] == [expected[key].text for key in results]


def test_a_load_reports_every_tensor_and_draws_no_bar(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[LoadProgress] = []
    loader: EngineLoader = load_engine
    source = ModelSource(alias="tiny", folder=folders["tiny-bloom"])
    engine = loader(source, on_progress=seen.append, should_stop=never)
    run(engine, [request(0, "A" * 3)])
    weights = [progress for progress in seen if progress.stage == "weights"]
    assert [progress.done for progress in weights] == list(range(1, weights[-1].total + 1))
    assert seen[-1].stage == "ready"
    assert capfd.readouterr() == ("", "")


def test_a_load_can_be_interrupted(folders: dict[str, Path]) -> None:
    seen: list[LoadProgress] = []
    source = ModelSource(alias="tiny", folder=folders["tiny-bloom"])
    with pytest.raises(LoadInterruptedError):
        load_engine(source, on_progress=seen.append, should_stop=lambda: len(seen) >= 3)
    assert len(seen) == 3
    # and transformers' own bars are as they were
    assert load(folders["tiny-bloom"]).model.alias == "tiny"


def test_close_frees_the_model(folders: dict[str, Path]) -> None:
    before = {id(model) for model in living_models("GPT2LMHeadModel")}
    engine = load(folders["tiny-cerebras"])
    (model,) = (
        weakref.ref(model) for model in living_models("GPT2LMHeadModel") if id(model) not in before
    )
    run(engine, [request(0, "A")])
    engine.close()
    assert model() is None


def living_models(class_name: str) -> list[Any]:
    return [thing for thing in gc.get_objects() if type(thing).__name__ == class_name]
