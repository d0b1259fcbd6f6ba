"""The int8 store's targets, apart because they bring torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from engine.interface import ModelLoadError
from engine.model.place import place_model
from engine.plan.on_this_machine import PlacementOptions, plan_on_this_machine
from engine.store.layout_document import document_of, layout_from
from engine.store.manifest import (
    MANIFEST,
    StoreManifest,
    StoreOrigin,
    WrittenFile,
    block_names,
    read_manifest,
)
from engine.store.prepare import Int8Store
from engine.store.read import StoredBlock, open_block
from tests.fuzz.seeds import DATA_BYTES
from tests.fuzz.targets import scratch
from tests.stores import CPU, ignore, never, prepare, read_block
from tests.tiny_checkpoints import checkpoint_folder

# A header may claim more of a file than a test should read.
MOST_BLOCK_BYTES = 2**20


def header(content: bytes) -> None:
    """A block's file, whole or by its header's JSON: refused, or every tensor lies in it."""
    folder = scratch() / "header"
    folder.mkdir(exist_ok=True)
    path = folder / "decoder-000.safetensors"
    for data in (content, len(content).to_bytes(8, "little") + content + bytes(DATA_BYTES)):
        path.write_bytes(data)
        listed = {path.name: WrittenFile(bytes=len(data), sha256="")}
        read_blocks(folder, manifest_of(listed), ["decoder-000"])


def manifest(content: bytes) -> None:
    """tgp_store.json: no manifest, or one whose files stay in its folder."""
    folder = scratch() / "manifest"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(content)
    found = read_manifest(folder)
    if found is None:
        return
    for name in found.files:
        assert Path(name).name == name, "a file outside the store's folder"
    found.intact_files(folder)
    if found.layout is not None:
        written = json.loads(json.dumps(document_of(found.layout)))
        assert layout_from(written) == found.layout
    assert found.origin.digest
    read_blocks(folder, found, sorted(block_names(found)))


def layout(content: bytes) -> None:
    """A real store whose layout is wrong in some places: made again, refused, or a model.

    Each line of the content is the way to a place in the manifest's layout and
    what to put there, as a list in JSON.
    """
    store = tiny_store()
    right = json.dumps(document_of(store.layout))
    document = json.loads(right)
    for line in content.splitlines():
        with suppress(ValueError, TypeError, LookupError, RecursionError):
            put(document, *json.loads(line))
    if json.dumps(document) == right:
        return
    text = json.loads((store.folder / MANIFEST).read_bytes()) | {"layout": document}
    folder = scratch() / "layout"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).write_text(json.dumps(text))
    found = read_manifest(folder)
    if found is None or found.layout is None:
        return
    wrong = replace(store, manifest=found, layout=found.layout)
    with suppress(ModelLoadError):
        plan = plan_on_this_machine(wrong, PlacementOptions(cpu_bytes=2**28), CPU)
        place_model(
            wrong,
            plan.placement,
            CPU,
            tokenizer=None,
            mode="w8a16",
            on_progress=ignore,
            should_stop=never,
        ).free()


def put(place: Any, *way: Any) -> None:
    *steps, last, value = way
    for step in steps:
        place = place[step]
    place[last] = value


@cache
def tiny_store() -> Int8Store:
    folder = checkpoint_folder("tiny-flan", scratch())
    return prepare(folder, scratch() / "stores", dtype=torch.float32)


def read_blocks(folder: Path, manifest: StoreManifest, names: list[str]) -> None:
    for name in names:
        with ExitStack() as files, suppress(ModelLoadError):
            read_whole(open_block(folder, name, manifest, files))


def read_whole(block: StoredBlock) -> None:
    if block.buffer_bytes > MOST_BLOCK_BYTES:
        return
    for name, view in block.views(read_block(block)).items():
        assert isinstance(name, str)
        view.sum()


def manifest_of(files: Mapping[str, WrittenFile]) -> StoreManifest:
    origin = StoreOrigin(location="x", commit=None, fingerprint="f", quantisation={}, dtype="auto")
    return StoreManifest(origin=origin, total_bytes=0, files=files)
