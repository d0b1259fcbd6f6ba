"""A store that is made on a CUDA device is what transformers saves from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, BitsAndBytesConfig

from engine.interface import ModelSource
from engine.load import load_engine
from engine.quiet import quiet_libraries
from tests.integration.engine_runs import RAGGED_PROMPTS, ignore, never, request, run
from tests.stores import plain_tensors, prepare
from tests.tiny_checkpoints import ALIASES, ENCODER_DECODERS, checkpoint_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("alias", ALIASES)
def test_every_tensor_is_the_one_that_transformers_saves(alias: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(alias, tmp_path)

    store = prepare(
        folder, tmp_path / "stores", device=torch.device("cuda", 0), dtype=torch.float16
    )

    kind = AutoModelForSeq2SeqLM if alias in ENCODER_DECODERS else AutoModelForCausalLM
    with quiet_libraries():
        kind.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(load_in_8bit=True),
            device_map={"": 0},
            dtype=torch.float16,
        ).save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = plain_tensors(store.folder)
    assert set(ours) == set(theirs)
    assert [name for name, tensor in theirs.items() if not torch.equal(ours[name], tensor)] == []


@pytest.mark.parametrize("alias", ALIASES)
def test_the_same_completions_with_a_store_and_without(alias: str, tmp_path: Path) -> None:
    source = ModelSource(alias=alias, folder=checkpoint_folder(alias, tmp_path))
    requests = [request(key, prompt) for key, prompt in enumerate(RAGGED_PROMPTS)]
    texts = []
    for stores in (None, tmp_path / "stores"):
        engine = load_engine(
            source, on_progress=ignore, should_stop=never, device="cuda", stores=stores
        )
        texts.append({key: result.text for key, result in run(engine, requests).items()})
        engine.close()

    assert texts[0] == texts[1]
