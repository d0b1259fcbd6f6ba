"""The engine on a store says what it says on the checkpoint, and makes the store by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine.interface import (
    ChatMessage,
    GenerationRequest,
    GenerationResult,
    LoadProgress,
    ModelLoadError,
    ModelSource,
)
from engine.load import load_engine
from tests.integration.engine_runs import (
    RAGGED_PROMPTS,
    copy,
    edit,
    ignore,
    load,
    never,
    request,
    run,
)
from tests.stores import pickle_weights, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, save_random_checkpoint

REQUESTS = [request(key, prompt) for key, prompt in enumerate(RAGGED_PROMPTS)]


def texts(folder: Path, stores: Path | None) -> dict[int, str | None]:
    engine = load(folder, stores=stores)
    try:
        return {key: result.text for key, result in run(engine, REQUESTS).items()}
    finally:
        engine.close()


@pytest.mark.parametrize("alias", ALIASES)
def test_the_same_completions_with_a_store_and_without(alias: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(alias, tmp_path)

    direct = texts(folder, None)

    assert texts(folder, tmp_path / "stores") == direct  # made
    assert texts(folder, tmp_path / "stores") == direct  # found


def stages_of_load(folder: Path, stores: Path) -> set[str]:
    said: list[LoadProgress] = []
    load_engine(
        ModelSource(alias="mine", folder=folder),
        on_progress=said.append,
        should_stop=never,
        device="cpu",
        stores=stores,
    ).close()
    return {progress.stage for progress in said}


def test_the_store_is_made_on_first_use_and_said(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-bloom", tmp_path)

    first = stages_of_load(folder, tmp_path / "stores")
    second = stages_of_load(folder, tmp_path / "stores")

    assert "prepare" in first
    assert "prepare" not in second


def test_settings_and_template_are_those_of_now_and_the_weights_are_not_made_again(
    tmp_path: Path,
) -> None:
    folder = copy(checkpoint_folder("tiny-bloom", tmp_path), tmp_path)
    stores = tmp_path / "stores"
    chat = request(0, (ChatMessage(role="user", content="A lease"),), logprobs=0)
    before = result_of(folder, stores, chat)
    made = times_of_weights(stores)

    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    alone = result_of(folder, stores, request(0, "A lease", logprobs=0))
    assert alone.logprobs
    edit(folder / "generation_config.json", eos_token_id=alone.logprobs[0].token_id)
    after = result_of(folder, stores, chat)

    assert before.completion_tokens > 1
    assert (after.prompt_tokens, after.completion_tokens) == (alone.prompt_tokens, 1)
    assert times_of_weights(stores) == made


def times_of_weights(stores: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in stores.rglob("*.safetensors")}


def result_of(folder: Path, stores: Path, asked: GenerationRequest) -> GenerationResult:
    engine = load(folder, stores=stores)
    try:
        return run(engine, [asked])[asked.key]
    finally:
        engine.close()


def test_the_command_makes_the_store_that_a_worker_loads(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-bloom", tmp_path)

    prepare(folder, tmp_path / "stores", dtype=torch.float32)  # as for a CPU

    assert "prepare" not in stages_of_load(folder, tmp_path / "stores")


def test_a_checkpoint_that_is_int8_already_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-bloom", tmp_path)
    store = prepare(folder, tmp_path / "stores", dtype=torch.float32)

    stages = stages_of_load(store.folder, tmp_path / "others")

    assert "prepare" not in stages
    assert not (tmp_path / "others").exists()


def test_weights_that_cannot_be_mapped_are_loaded_without_a_store(tmp_path: Path) -> None:
    folder = save_random_checkpoint("tiny-bloom", tmp_path / "old")
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    # as torch before 1.6 did
    torch.save(whole, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)

    assert "prepare" not in stages_of_load(folder, tmp_path / "stores")


def refusal(folder: Path, stores: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        prepare(folder, stores, on_progress=ignore)
    return str(caught.value)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = save_random_checkpoint("tiny-cerebras", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))

    message = refusal(folder, tmp_path / "stores")

    assert "lacks 12 tensors of its own architecture, transformer.h.2.attn.c_attn.bias" in message


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = save_random_checkpoint("tiny-cerebras", tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_inner": 64}))

    assert "has another shape for" in refusal(folder, tmp_path / "stores")


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder = pickle_weights(save_random_checkpoint("tiny-bloom", tmp_path / "checkpoint"))
    torch.save({"x": Path("anything but a tensor")}, folder / "pytorch_model.bin")

    assert "code in a checkpoint is never run" in refusal(folder, tmp_path / "stores")


def test_a_store_is_not_made_of_a_store(tmp_path: Path) -> None:
    store = prepare(checkpoint_folder("tiny-bloom", tmp_path), tmp_path / "stores")

    shutil.copytree(store.folder, tmp_path / "copy")

    assert "is quantised already" in refusal(tmp_path / "copy", tmp_path / "stores")
