"""The whole engine on a model that does not fit its budget."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from engine.decode.engine import DecodeEngine
from engine.interface import (
    Engine,
    ModelDescription,
    ModelLoadError,
    ModelSource,
    RequestList,
    Window,
)
from engine.load import load_engine
from engine.model.place import place_model
from engine.plan.demands import Workload
from engine.plan.from_layout import demands_of_config
from engine.plan.limits import BatchLimits
from engine.plan.plan import Budgets, CannotRunError
from engine.plan.rates import CPU as CPU_RATES
from engine.plan.search import make_plan
from engine.store.prepare import Int8Store
from tests.integration.engine_runs import ignore, never, request
from tests.placements import tiers_of
from tests.stores import CPU, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder

PROMPTS = tuple(
    f"{text} {number}"
    for number in range(4)
    for text in ("A lease", "The worker claims a shard in the database", "Redis carries")
)
SHORT_ROWS = Workload(prompt_tokens=24, new_tokens=8, shard_rows=6)


def least_bytes(folder: Path) -> int:
    """The least RAM that does, for one row; a little more is no room for the blocks."""
    model = demands_of_config(AutoConfig.from_pretrained(folder), "tiny", on_gpu=False)
    nothing = Budgets(gpu_bytes=None, cpu_bytes=0, disk_bytes=10**12)
    with pytest.raises(CannotRunError) as refused:
        make_plan(model, SHORT_ROWS, nothing, CPU_RATES)
    return refused.value.short["CPU memory"]


def engine_for(folder: Path, stores: Path, **options: Any) -> Engine:
    return load_engine(
        ModelSource(alias="tiny", folder=folder),
        on_progress=ignore,
        should_stop=never,
        device="cpu",
        stores=stores,
        workload=SHORT_ROWS,
        **options,
    )


def generate(engine: Engine) -> tuple[dict[int, str | None], list[Window]]:
    requests = [request(key, prompt) for key, prompt in enumerate(PROMPTS)]
    batches = list(engine.generate(RequestList(requests), should_stop=never))
    texts = {result.key: result.text for batch in batches for result in batch.results}
    engine.close()
    return texts, batches


@pytest.mark.parametrize("alias", ALIASES)
def test_a_budget_changes_the_time_and_not_the_text(alias: str, tmp_path: Path) -> None:
    folder = checkpoint_folder(alias, tmp_path)
    stores = tmp_path / "stores"
    free = engine_for(folder, stores, compute_mode="w8a16")
    tight = engine_for(
        folder,
        stores,
        compute_mode="w8a16",
        cpu_bytes=least_bytes(folder) + 1024,
        micro_batch_rows=3,
        disk_readers=1,
    )
    assert tight.model.compute_mode == "w8a16"
    assert tight.model.weight_bytes == free.model.weight_bytes
    assert tight.model.parameter_count == free.model.parameter_count
    expected, resident = generate(free)
    texts, streamed = generate(tight)
    assert len(texts) == len(PROMPTS)
    assert texts == expected
    assert sum(batch.streamed_bytes for batch in resident) == 0
    assert sum(batch.streamed_bytes for batch in streamed) > 0
    assert max(batch.rows for batch in streamed) <= 3
    assert all(batch.compute_seconds > 0 for batch in streamed)
    assert all(batch.link_wait_seconds >= 0 for batch in streamed)


def test_a_budget_that_is_too_small_is_refused_with_one_that_does(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-bloom", tmp_path)
    with pytest.raises(ModelLoadError, match=r"it needs at least [\d.]+ GiB of CPU memory"):
        engine_for(folder, tmp_path / "stores", cpu_bytes=1000)


def test_w8a16_says_the_same_with_and_without_a_store(tmp_path: Path) -> None:
    source = ModelSource(alias="tiny", folder=checkpoint_folder("tiny-bloom", tmp_path))
    said = []
    for stores in (None, tmp_path / "stores"):
        engine = load_engine(
            source,
            on_progress=ignore,
            should_stop=never,
            device="cpu",
            compute_mode="w8a16",
            stores=stores,
        )
        with closing(engine):
            said.append(generate(engine)[0])
    assert said[0] == said[1]


@pytest.fixture
def flan(tmp_path: Path) -> Int8Store:
    folder = checkpoint_folder("tiny-flan", tmp_path)
    return prepare(folder, tmp_path / "stores", dtype=torch.float32)


def test_an_encoder_is_streamed_once_for_all_prompts_and_a_decoder_that_fits_never(
    flan: Int8Store,
) -> None:
    tiers = tiers_of(flan.layout, "all-resident")
    encoder = [block for block in flan.layout.blocks if block.kind == "encoder"]
    tiers |= {block.name: "disk" for block in encoder}
    loaded = place_model(
        flan,
        tiers,
        CPU,
        tokenizer=AutoTokenizer.from_pretrained(flan.folder),
        mode="w8a16",
        on_progress=ignore,
        should_stop=never,
    )
    description = ModelDescription(
        alias="flan",
        device="cpu",
        architecture="T5",
        parameter_count=1,
        weight_bytes=1,
        load_seconds=0.0,
        context_tokens=None,
        compute_mode="w8a16",
    )
    # Passes of few tokens, so that the prompts take several of them.
    limits = BatchLimits(rows=2, prefill_tokens=64, encoded_rows=len(PROMPTS))
    texts, batches = generate(DecodeEngine(loaded, description, limits=limits))
    assert len(texts) == len(PROMPTS)
    once = sum(block.bytes for block in encoder)
    # The first blocks are fetched again for a pass that may come, and no more.
    ahead = sum(block.bytes for block in encoder[:2]) if len(encoder) > 2 else 0
    assert once <= sum(batch.streamed_bytes for batch in batches) <= once + ahead
    assert sum(batch.steps for batch in batches) > 1
