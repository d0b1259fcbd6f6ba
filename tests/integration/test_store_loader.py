"""A store is loaded by its placement: the same bytes, in the memory that was planned."""

from __future__ import annotations

import errno
import json
import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, GPTNeoXConfig

from engine.interface import LoadInterruptedError, LoadProgress, ModelLoadError
from engine.layout.blocks import ModelLayout, layout_of
from engine.plan.plan import Tier
from engine.store.prepare import Int8Store
from engine.store.read import PIECE_BYTES
from engine.weights.loader import READERS, LoadedStore, load_store
from tests.placements import (
    PLACEMENTS,
    bytes_by_tier,
    differing,
    tensors_by_safetensors,
    tensors_wherever,
    tiers_of,
)
from tests.random_checkpoints import write_random_checkpoint
from tests.stores import CPU, ignore, never, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


Stored = Callable[[str], tuple[Int8Store, ModelLayout]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The store of a tiny checkpoint, made once and only read, and its layout."""
    scratch = tmp_path_factory.mktemp("stored")

    @cache
    def made(alias: str) -> tuple[Int8Store, ModelLayout]:
        folder = checkpoint_folder(alias, scratch)
        layout = layout_of(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        return prepare(folder, scratch / "stores", dtype=torch.float32), layout

    return made


def load(store: Int8Store, tiers: dict[str, Tier], **options: Any) -> LoadedStore:
    options = {"on_progress": ignore, "should_stop": never, **options}
    return load_store(store, tiers, CPU, **options)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_every_tier_takes_the_bytes_of_the_layout(
    alias: str, placement: str, stored: Stored
) -> None:
    store, layout = stored(alias)
    tiers = tiers_of(layout, placement)

    with load(store, tiers) as loaded:
        for tier, expected in bytes_by_tier(layout, tiers).items():
            assert loaded.bytes_at(tier) == pytest.approx(expected, rel=0.02)
        sizes = {name: block.stored.bytes for name, block in loaded.blocks.items()}
    assert sizes == {block.name: block.bytes for block in layout.blocks}


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("alias", ALIASES)
def test_every_tensor_is_as_in_the_file(alias: str, placement: str, stored: Stored) -> None:
    store, layout = stored(alias)

    with load(store, tiers_of(layout, placement)) as loaded:
        for block in loaded.blocks.values():
            theirs = tensors_by_safetensors(block.stored)
            assert differing(tensors_wherever(block), theirs) == []


def test_all_of_a_block_in_ram_is_in_one_buffer(stored: Stored) -> None:
    store, layout = stored("tiny-flan")

    with load(store, tiers_of(layout, "all-in-ram")) as loaded:
        for block in loaded.blocks.values():
            assert block.flat is not None
            storage = block.flat.untyped_storage().data_ptr()
            for tensor in block.tensors.values():
                assert tensor.untyped_storage().data_ptr() == storage
                assert tensor.data_ptr() % tensor.dtype.itemsize == 0


def test_nothing_is_in_memory_of_what_stays_on_disk(stored: Stored) -> None:
    store, layout = stored("tiny-bloom")
    said: list[LoadProgress] = []

    with load(store, tiers_of(layout, "all-on-disk"), on_progress=said.append) as loaded:
        assert all(block.flat is None and not block.tensors for block in loaded.blocks.values())
    assert said == []


def test_progress_ends_with_the_bytes_that_are_in_memory(stored: Stored) -> None:
    store, layout = stored("tiny-bloom")
    tiers = tiers_of(layout, "mixed")
    said: list[LoadProgress] = []

    load(store, tiers, on_progress=said.append).close()

    total = sum(bytes_by_tier(layout, tiers).values())
    assert {(each.stage, each.unit, each.total) for each in said} == {("load", "bytes", total)}
    assert [each.done for each in said] == sorted({each.done for each in said})
    assert said[-1].done == total


@pytest.mark.parametrize("placement", ["all-resident", "all-in-ram"])
def test_a_load_can_be_interrupted(placement: str, stored: Stored) -> None:
    store, layout = stored("tiny-bloom")
    said: list[LoadProgress] = []

    with pytest.raises(LoadInterruptedError):
        load(
            store,
            tiers_of(layout, placement),
            on_progress=said.append,
            should_stop=lambda: len(said) == 2,
        )

    assert len(said) == 2


def test_files_are_closed_and_blocks_let_go(stored: Stored) -> None:
    store, layout = stored("tiny-bloom")
    loaded = load(store, tiers_of(layout, "mixed"))
    files = [segment.file for block in loaded.blocks.values() for segment in block.stored.segments]

    loaded.close()

    assert loaded.blocks == {}
    assert all(file.closed for file in files)


Copied = tuple[Int8Store, dict[str, Tier], Path]


@pytest.fixture
def copied_store(stored: Stored, tmp_path: Path) -> Copied:
    """A store that may be damaged, and one of its files."""
    store, layout = stored("tiny-bloom")
    folder = Path(shutil.copytree(store.folder, tmp_path / "damaged"))
    file = folder / "decoder-001.safetensors"
    return replace(store, folder=folder), tiers_of(layout, "all-on-disk"), file


def refusal(store: Int8Store, tiers: dict[str, Tier]) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(store, tiers)
    return str(caught.value)


def test_a_missing_file_is_named(copied_store: Copied) -> None:
    store, tiers, file = copied_store
    file.unlink()

    message = refusal(store, tiers)

    assert f"{file} cannot be loaded (No such file or directory)" in message


def test_a_truncated_file_is_named(copied_store: Copied) -> None:
    store, tiers, file = copied_store
    length = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(length - 1)

    message = refusal(store, tiers)

    assert (
        f"{file} cannot be loaded (it has {length - 1} bytes and should have {length})" in message
    )


@pytest.mark.parametrize(
    ("start", "fault"),
    [
        (b"\xff" * 8, "its header is longer than the file"),
        ((100).to_bytes(8, "little") + b"[" * 100, "its header is no safetensors header"),
        ((100).to_bytes(8, "little") + b"{}".ljust(100), "do not belong together"),
    ],
)
def test_a_damaged_header_is_named(start: bytes, fault: str, copied_store: Copied) -> None:
    store, tiers, file = copied_store
    with file.open("r+b") as handle:
        handle.write(start)

    message = refusal(store, tiers)

    assert str(file) in message
    assert fault in message


def test_a_file_that_becomes_shorter_is_named_when_it_is_read(copied_store: Copied) -> None:
    store, tiers, file = copied_store

    with load(store, tiers) as loaded:
        with file.open("r+b") as handle:
            handle.truncate(5000)
        with pytest.raises(ModelLoadError, match="it ends too early") as caught:
            tensors_wherever(loaded.blocks["decoder-001"])

    assert str(file) in str(caught.value)


def test_a_placement_of_another_model_is_refused(stored: Stored) -> None:
    store, layout = stored("tiny-bloom")
    tiers = {**tiers_of(layout, "all-on-disk"), "decoder-999": "disk"}

    assert "decoder-999 is only in one of them" in refusal(store, tiers)


def test_a_ram_tier_that_does_not_fit_is_said(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, layout = stored("tiny-bloom")

    def no_memory(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_memory)

    assert "no room for embedding in RAM" in refusal(store, tiers_of(layout, "all-in-ram"))


def test_no_more_memory_than_the_ram_tier(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=16,
    )
    write_random_checkpoint(config, tmp_path / "checkpoint")
    tiers = tiers_of(layout_of(config, dtype=torch.float32), "mixed")

    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.load_memory",
            tmp_path / "checkpoint",
            tmp_path / "stores",
            json.dumps(tiers),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert min(report["ram_bytes"], report["resident_bytes"]) > 48 * MIB
    own_bytes = 2 * MIB  # the interpreter's
    ceiling = report["ram_bytes"] + READERS * PIECE_BYTES + own_bytes
    assert report["peak_bytes"] - report["baseline_bytes"] < ceiling
    assert report["closed_bytes"] - report["baseline_bytes"] < own_bytes
