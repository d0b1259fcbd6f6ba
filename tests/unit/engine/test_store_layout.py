"""The layout in a store's manifest: written, read again, and never believed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.interface import ModelLoadError
from engine.layout.blocks import BlockLayout, ModelLayout, TensorLayout
from engine.model.place import place_model
from engine.store.layout_document import document_of, layout_from
from engine.store.manifest import read_manifest
from engine.store.prepare import Int8Store
from tests.fuzz.seeds import LAYOUT_EDITS
from tests.fuzz.stores import put
from tests.stores import CPU, ignore, never, prepare
from tests.tiny_checkpoints import ALIASES, checkpoint_folder, tiny_tokenizer


@pytest.fixture(params=ALIASES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Int8Store:
    return prepare(checkpoint_folder(request.param, tmp_path), tmp_path / "stores")


@pytest.fixture
def flan(tmp_path: Path) -> Int8Store:
    return prepare(checkpoint_folder("tiny-flan", tmp_path), tmp_path / "stores")


def test_the_layout_of_a_store_is_in_its_manifest(store: Int8Store) -> None:
    manifest = read_manifest(store.folder)

    assert manifest is not None
    assert manifest.layout == store.layout


@pytest.mark.parametrize("edit", LAYOUT_EDITS, ids=bytes.decode)
def test_a_layout_that_is_wrong_anywhere_is_refused(edit: bytes, flan: Int8Store) -> None:
    document = json.loads(json.dumps(document_of(flan.layout)))
    put(document, *json.loads(edit))

    with pytest.raises((ModelLoadError, ValueError, KeyError)):
        load(replace(flan, layout=layout_from(document)))


def test_a_layout_of_other_blocks_than_the_files_is_no_manifest(flan: Int8Store) -> None:
    path = flan.folder / "tgp_store.json"
    document = json.loads(path.read_text())
    del document["layout"]["blocks"][1]
    path.write_text(json.dumps(document))

    assert read_manifest(flan.folder) is None


def test_a_layout_of_another_dtype_than_the_origin_is_no_manifest(tmp_path: Path) -> None:
    folder = checkpoint_folder("tiny-bloom", tmp_path)
    store = prepare(folder, tmp_path / "stores", dtype=torch.float32)
    path = store.folder / "tgp_store.json"
    document = json.loads(path.read_text())
    document["layout"]["dtype"] = "F16"
    path.write_text(json.dumps(document))

    assert read_manifest(store.folder) is None


def test_a_tensor_in_another_block_is_refused(flan: Int8Store) -> None:
    first, second, *others = flan.layout.blocks
    swapped = (replace(first, tensors=second.tensors), replace(second, tensors=first.tensors))

    with pytest.raises(ModelLoadError, match="does not describe this model"):
        load(replace(flan, layout=replace(flan.layout, blocks=(*swapped, *others))))


def test_a_file_with_another_tensor_than_the_layout_is_named(flan: Int8Store) -> None:
    layout = with_first_tensor(flan.layout, "encoder-000", name="another")

    with pytest.raises(ModelLoadError, match=r"encoder-000\.safetensors .* do not agree on"):
        load(replace(flan, layout=layout))


def with_first_tensor(layout: ModelLayout, block_name: str, **changes: Any) -> ModelLayout:
    def changed(block: BlockLayout) -> BlockLayout:
        first: TensorLayout = replace(block.tensors[0], **changes)
        return replace(block, tensors=(first, *block.tensors[1:]))

    blocks = (changed(each) if each.name == block_name else each for each in layout.blocks)
    return replace(layout, blocks=tuple(blocks))


def load(store: Int8Store) -> None:
    place_model(
        store,
        {block.name: "resident" for block in store.layout.blocks},
        CPU,
        tokenizer=tiny_tokenizer(),
        mode="w8a16",
        on_progress=ignore,
        should_stop=never,
    ).free()
