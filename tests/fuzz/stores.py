"""The int8 store's targets, apart because they bring torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from engine.interface import ModelLoadError
from engine.store.manifest import (
    MANIFEST,
    StoreManifest,
    StoreOrigin,
    WrittenFile,
    block_names,
    read_manifest,
)
from engine.store.read import StoredBlock, open_block
from tests.fuzz.seeds import DATA_BYTES
from tests.fuzz.targets import scratch
from tests.stores import read_block

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
    assert found.origin.digest
    read_blocks(folder, found, sorted(block_names(found)))


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
