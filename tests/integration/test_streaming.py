"""Wherever the blocks are, the greedy tokens are those of plain transformers on the store."""

from __future__ import annotations

import errno
import gc
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from engine.int8.linear import ComputeMode
from engine.interface import ModelLoadError
from engine.model.loaded import Int8Model
from engine.store.prepare import Int8Store
from engine.store.read import Segment
from tests.placements import PLACEMENTS
from tests.plain_models import plain_model
from tests.stores import CPU, prepare
from tests.streamed_models import (
    PROMPTS,
    PlainTokens,
    StreamedModels,
    tokens_of,
)
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, tiny_tokenizer

ON_CPU = StreamedModels(CPU, torch.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Int8Store]:
    return ON_CPU.stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def plain(stores: dict[str, Int8Store]) -> PlainTokens:
    return ON_CPU.plain(stores)


@contextmanager
def placed(
    store: Int8Store, placement: str, *, mode: ComputeMode = "w8a16", **options: Any
) -> Iterator[Int8Model]:
    with ON_CPU.placed(store, placement, mode=mode, **options) as model:
        yield model


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_llm_int8_gives_the_tokens_of_plain_transformers_on_the_same_batch(
    alias: str, placement: str, stores: dict[str, Int8Store], plain: PlainTokens
) -> None:
    with placed(stores[alias], placement, mode="llm_int8") as model:
        for prompts in (PROMPTS, PROMPTS[:1]):
            expected = plain(alias, "llm_int8", prompts)
            assert tokens_of(model, stores[alias], prompts) == expected
        assert (model.passes.totals.streamed_bytes == 0) == (placement == "all-resident")


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_w8a16_gives_the_tokens_of_each_prompt_alone_in_any_batch(
    alias: str, placement: str, stores: dict[str, Int8Store], plain: PlainTokens
) -> None:
    alone = [plain(alias, "w8a16", (prompt,))[0] for prompt in PROMPTS]
    with placed(stores[alias], placement) as model:
        assert tokens_of(model, stores[alias]) == alone
        assert tokens_of(model, stores[alias], PROMPTS[2:3]) == alone[2:3]


@pytest.mark.parametrize("slot_count", [1, 2, 3, 99])
@pytest.mark.parametrize("alias", ALIASES)
def test_any_number_of_slots_gives_the_same_tokens(
    alias: str, slot_count: int, stores: dict[str, Int8Store], plain: PlainTokens
) -> None:
    with placed(stores[alias], "all-on-disk", mode="llm_int8", slot_count=slot_count) as model:
        assert tokens_of(model, stores[alias]) == plain(alias, "llm_int8", PROMPTS)
        streamed = {
            kind: sum(block.kind == kind for block in stores[alias].layout.blocks)
            for kind in ("encoder", "decoder")
        }
        # The head passes through a slot as well, tied or not.
        most = max(streamed["encoder"], streamed["decoder"] + 1)
        assert len(model.slots) == min(slot_count, most)


@pytest.mark.parametrize("alias", ALIASES)
def test_a_slow_and_jittery_disk_changes_nothing_but_the_time(
    alias: str, stores: dict[str, Int8Store], plain: PlainTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = random.Random(3)
    read = Segment.read

    def late(segment: Segment, start: int, target: torch.Tensor) -> int:
        time.sleep(delays.choice((0.0, 0.0, 0.002, 0.01)))
        return read(segment, start, target)

    with placed(stores[alias], "mixed", mode="llm_int8", disk_readers=3) as model:
        monkeypatch.setattr(Segment, "read", late)
        assert tokens_of(model, stores[alias]) == plain(alias, "llm_int8", PROMPTS)
        assert model.passes.totals.link_wait_seconds > 0


def streamed_file(model: Int8Model) -> Path:
    block = next(b for name, b in model.blocks.items() if name == "decoder-001")
    assert block.tier == "disk"
    return block.stored.segments[0].path


@pytest.fixture
def own_store(tmp_path: Path) -> Int8Store:
    return prepare(checkpoint_folder("tiny-bloom", tmp_path), tmp_path / "own", dtype=torch.float32)


@pytest.mark.parametrize("damage", ["truncated", "one byte flipped"])
def test_a_file_damaged_while_it_is_streamed_ends_the_pass_and_is_named(
    own_store: Int8Store, damage: str
) -> None:
    with placed(own_store, "all-on-disk") as model:
        before = tokens_of(model, own_store)
        path = streamed_file(model)
        intact = path.read_bytes()
        if damage == "truncated":
            os.truncate(path, len(intact) // 2)
        else:
            with path.open("r+b") as file:
                file.seek(len(intact) // 2)
                file.write(bytes([intact[len(intact) // 2] ^ 1]))
        # The slots may still hold what was read ahead.
        with pytest.raises(ModelLoadError, match=path.name):
            tokens_of(model, own_store)
        # Mended, the same model goes on: nothing of the broken pass is left.
        with path.open("r+b") as file:
            file.write(intact)
        assert tokens_of(model, own_store) == before


def test_a_disk_that_fails_ends_the_pass_and_names_the_file(
    own_store: Int8Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with placed(own_store, "all-on-disk") as model:
        tokens_of(model, own_store)
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(ModelLoadError, match=r"\w+\.safetensors.*Input/output error"):
            tokens_of(model, own_store)


def test_a_reader_that_dies_is_noticed(
    own_store: Int8Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Segment.read

    def die(segment: Segment, start: int, target: torch.Tensor) -> int:
        if threading.current_thread().name.startswith("disk-reader"):
            raise SystemExit
        return read(segment, start, target)

    with placed(own_store, "all-on-disk") as model:
        tokens_of(model, own_store)
        monkeypatch.setattr(Segment, "read", die)
        with pytest.raises(ModelLoadError, match="SystemExit"):
            tokens_of(model, own_store)


def test_a_damaged_block_is_found_when_it_is_loaded(own_store: Int8Store) -> None:
    path = own_store.folder / "decoder-000.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 0x10
    path.write_bytes(data)
    for placement in ("all-resident", "all-in-ram"):
        with (
            pytest.raises(ModelLoadError, match=r"decoder-000\.safetensors"),
            placed(own_store, placement),
        ):
            pass


def test_passes_that_go_together_fetch_each_block_once(
    stores: dict[str, Int8Store], plain: PlainTokens
) -> None:
    store = stores["tiny-gpt-neox"]
    with placed(store, "all-on-disk") as model:
        alone = model.passes.together([_prefill(model, [5, 6, 7])])[0]
        before = model.passes.totals.streamed_bytes
        model.passes.together([_prefill(model, [5, 6, 7])])
        one_pass = model.passes.totals.streamed_bytes - before
        logits = model.passes.together(
            [_prefill(model, ids) for ids in ([5, 6, 7], [9], [8, 7, 6, 5])]
        )
        assert model.passes.totals.streamed_bytes - before == 2 * one_pass
        assert torch.equal(logits[0], alone)
        assert [each.shape[1] for each in logits] == [3, 1, 4]


def test_an_exception_in_one_pass_ends_those_that_go_with_it(stores: dict[str, Int8Store]) -> None:
    store = stores["tiny-gpt-neox"]
    with placed(store, "all-on-disk") as model:
        expected = model.passes.together([_prefill(model, [5, 6, 7])])[0]
        calls: list[int] = []

        def broken() -> torch.Tensor:
            calls.append(1)
            handle = model.model.gpt_neox.layers[1].register_forward_pre_hook(_raise)
            try:
                return _prefill(model, [4])()
            finally:
                handle.remove()

        with pytest.raises(ZeroDivisionError):
            model.passes.together([_prefill(model, [5, 6, 7]), broken])
        assert calls == [1]
        assert torch.equal(model.passes.together([_prefill(model, [5, 6, 7])])[0], expected)


def _raise(*_: Any) -> None:
    raise ZeroDivisionError


def _prefill(model: Int8Model, ids: list[int]) -> Callable[[], torch.Tensor]:
    return lambda: model.model(input_ids=torch.tensor([ids]), use_cache=False).logits


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_models_one_after_another_leave_nothing_behind(stores: dict[str, Int8Store]) -> None:
    def load(alias: str) -> None:
        with placed(stores[alias], "mixed", mode="llm_int8") as model:
            tokens_of(model, stores[alias], PROMPTS[:1])

    load("tiny-bloom")
    gc.collect()
    threads, files = threading.active_count(), open_files()
    for alias in ("tiny-cerebras", "tiny-bloom"):
        load(alias)
    gc.collect()
    assert threading.active_count() == threads
    assert open_files() == files


def test_wo_does_not_overflow_float16_as_plain_float16_does(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=300,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=1,
        eos_token_id=0,
        pad_token_id=1,
    )
    torch.manual_seed(3)
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("wo.weight"):
                parameter.mul_(4e4)
            elif parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(tmp_path / "large")
    tiny_tokenizer().save_pretrained(tmp_path / "large")
    store = prepare(tmp_path / "large", tmp_path / "stores", dtype=torch.float16)
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
        "decoder_input_ids": torch.tensor([[1]]),
        "use_cache": False,
    }
    with torch.inference_mode():
        assert not torch.isfinite(model.half()(**inputs).logits).all()
        with placed(store, "all-on-disk") as ours:
            logits = ours.model(**inputs).logits
        exact = plain_model(
            prepare(tmp_path / "large", tmp_path / "exact", dtype=torch.float32), mode="w8a16"
        )(**inputs).logits
    assert torch.isfinite(logits).all()
    assert logits.argmax() == exact.argmax()
