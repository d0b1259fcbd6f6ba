"""tgp_store.json: what made a store, its model's layout, and a checksum for each file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.folder import Checkpoint
from engine.interface import LoadInterruptedError, LoadProgress, ModelSource
from engine.layout.blocks import ModelLayout
from engine.layout.skeleton import int8_settings
from engine.store.checksum import sha256_of
from engine.store.contents import ENGINE_ONLY
from engine.store.header import SUFFIX
from engine.store.layout_document import document_of, layout_from


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished file.

    Attributes:
        bytes: Length of the file.
        sha256: SHA-256 of the whole file, in hexadecimal.
        word_sum: Sum of the tensors' data; None for a file without tensors.
    """

    bytes: int
    sha256: str
    word_sum: int | None = None


MANIFEST = "tgp_store.json"


# A store of another version is made again. 2: sums of words. 3: the model's layout.
FORMAT_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class StoreOrigin:
    """What a store was made of and how; a store with another origin is made again.

    Attributes:
        location: The hub id or the folder.
        commit: The hub's commit, or None for a folder.
        fingerprint: Changes with the names, sizes and, for a folder, times of
            the checkpoint's files.
        quantisation: The quantization_config in config.json.
        dtype: What was asked for what is not int8; "auto" is the checkpoint's own.
        format_version: Version of the folder's layout, FORMAT_VERSION.
    """

    location: str
    commit: str | None
    fingerprint: str
    quantisation: Mapping[str, Any]
    dtype: str
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """A short digest of the place and the settings, not of what is there now."""
        # 2, as when folders got their names, so that a new version takes the old one's place.
        stable = {**asdict(self), "commit": None, "fingerprint": "", "format_version": 2}
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """The finished files of a store that is complete or still being made.

    Attributes:
        origin: What the store was made of, and how.
        total_bytes: Bytes of the tensors, when it is complete.
        layout: The tensors that the engine reads; None until the store is complete.
        files: Length and checksum by name, each on disk before it is listed.
        made_with: Versions and device, for people; a GPU and a CPU may round a
            weight differently.
    """

    origin: StoreOrigin
    total_bytes: int
    layout: ModelLayout | None = None
    files: Mapping[str, WrittenFile] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    def adding(self, name: str, file: WrittenFile) -> StoreManifest:
        return replace(self, files={**self.files, name: file})

    def intact_files(self, folder: Path) -> set[str]:
        """Names of the listed files that are there at their full length."""
        return {
            name
            for name, file in self.files.items()
            if (folder / name).is_file() and (folder / name).stat().st_size == file.bytes
        }


def read_manifest(folder: Path) -> StoreManifest | None:
    """The manifest of a folder, or None where there is none that can be used."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        layout = document.get("layout")
        manifest = StoreManifest(
            origin=StoreOrigin(**document["origin"]),
            total_bytes=_length(document["total_bytes"]),
            layout=None if layout is None else layout_from(layout),
            files={_name(name): _file(**file) for name, file in document["files"].items()},
            made_with=document["made_with"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return manifest if _agrees_with_layout(manifest) else None


def _agrees_with_layout(manifest: StoreManifest) -> bool:
    """Whether the files and the dtype asked for are those of the layout, if there is one."""
    if manifest.layout is None:
        return True
    blocks = {block.name for block in manifest.layout.blocks}
    dtypes = ("auto", str(manifest.layout.dtype).removeprefix("torch."))
    return blocks == block_names(manifest) and manifest.origin.dtype in dtypes


def block_names(manifest: StoreManifest) -> set[str]:
    """The blocks whose files the engine reads."""
    stems = {name.removesuffix(SUFFIX) for name in manifest.files if name.endswith(SUFFIX)}
    return {stem.removesuffix(f".{ENGINE_ONLY}") for stem in stems if _is_for_engine(stem)}


def _is_for_engine(stem: str) -> bool:
    """Whether a file is not one that only plain transformers reads."""
    return stem.rpartition(".")[2] == ENGINE_ONLY or "." not in stem


def damaged_files(
    folder: Path,
    manifest: StoreManifest,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> list[str]:
    """Read every file of a store and name those that are not as they were written.

    Raises:
        LoadInterruptedError: should_stop() turned true on the way.
    """
    done, total, faults = 0, sum(file.bytes for file in manifest.files.values()), []

    def on_bytes(count: int) -> None:
        nonlocal done
        done += count
        on_progress(LoadProgress(stage="verify", done=done, total=total, unit="bytes"))
        if should_stop():
            raise LoadInterruptedError

    for name, file in sorted(manifest.files.items()):
        try:
            is_intact = sha256_of(folder / name, on_bytes=on_bytes) == file.sha256
        except OSError:
            is_intact = False
        if not is_intact:
            faults.append(name)
    return faults


def _name(name: str) -> str:
    # A store's files lie beside its manifest, which may come from elsewhere.
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("the name of no file in the folder")
    name.encode()
    return name


def _file(*, bytes: int, sha256: str, word_sum: int | None = None) -> WrittenFile:  # noqa: A002 - the document's own word
    if not isinstance(sha256, str):
        raise TypeError("a checksum is a text")
    checked = None if word_sum is None else _length(word_sum)
    return WrittenFile(bytes=_length(bytes), sha256=sha256, word_sum=checked)


def _length(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a length is a whole number")
    return value


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    """Put a manifest in the place of the one before, so that a crash leaves one of them."""
    document = asdict(replace(manifest, layout=None))
    if manifest.layout is not None:
        document["layout"] = document_of(manifest.layout)
    write_durably(folder / MANIFEST, json.dumps(document, indent=1).encode())


def write_durably(path: Path, data: bytes) -> WrittenFile:
    """Write a small file whole or not at all, and wait until it is on the disk."""
    scratch = path.with_name(f"{path.name}.new")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    sync_folder(path.parent)
    return WrittenFile(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# The hub library keeps a commit's files in models--.../snapshots/<commit>.
_SNAPSHOTS = "snapshots"


def origin_of(
    source: ModelSource, checkpoint: Checkpoint, dtype: torch.dtype | None
) -> StoreOrigin:
    """What a store made of this checkpoint now would say of itself."""
    folder = checkpoint.folder
    is_snapshot = source.hub_id is not None and folder.parent.name == _SNAPSHOTS
    return StoreOrigin(
        location=source.hub_id or str(folder.resolve()),
        commit=folder.name if is_snapshot else None,
        fingerprint=_fingerprint(checkpoint, with_times=not is_snapshot),
        quantisation=int8_settings(checkpoint.config).to_dict(),
        dtype="auto" if dtype is None else str(dtype).removeprefix("torch."),
    )


def store_folder(stores: Path, source: ModelSource, origin: StoreOrigin) -> Path:
    """The folder of a store: stays the same when the checkpoint changes."""
    return stores / f"{source.alias}-{origin.digest}"


def _fingerprint(checkpoint: Checkpoint, *, with_times: bool) -> str:
    """A digest of the files' names and sizes, and of when they were changed.

    Times are left out where a commit names the contents: the same commit
    downloaded again is the same model.
    """
    digest = hashlib.sha256()
    for file in (checkpoint.folder / "config.json", *checkpoint.weight_files):
        facts = file.stat()
        changed = facts.st_mtime_ns if with_times else 0
        digest.update(f"{file.name}\0{facts.st_size}\0{changed}\n".encode())
    return digest.hexdigest()
