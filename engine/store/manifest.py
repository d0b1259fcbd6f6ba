"""tgp_store.json: what made a store, and a checksum for each of its files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.folder import Checkpoint
from engine.interface import ModelSource
from engine.layout.skeleton import int8_settings


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished file.

    Attributes:
        bytes: Its length.
        sha256: Of all of it.
        word_sum: Of its tensors' data; None for a file of another kind.
    """

    bytes: int
    sha256: str
    word_sum: int | None = None


MANIFEST = "tgp_store.json"


# Of the folder's layout; a store of another one is made again. 2: sums of words.
FORMAT_VERSION = 2


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
        format_version: See FORMAT_VERSION.
    """

    location: str
    commit: str | None
    fingerprint: str
    quantisation: Mapping[str, Any]
    dtype: str
    format_version: int = FORMAT_VERSION

    @property
    def digest(self) -> str:
        """Short and stable: of the place and the settings, not of what is there now."""
        stable = {**asdict(self), "commit": None, "fingerprint": ""}
        return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:10]


@dataclass(frozen=True, kw_only=True)
class StoreManifest:
    """The finished files of a store that is complete or still being made.

    Attributes:
        origin: What made it.
        total_bytes: Of the tensors, when it is complete.
        files: Length and checksum by name, each on disk before it is listed.
        made_with: Versions and device, for people; a GPU and a CPU may round a
            weight differently.
    """

    origin: StoreOrigin
    total_bytes: int
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
        return StoreManifest(
            origin=StoreOrigin(**document["origin"]),
            total_bytes=_length(document["total_bytes"]),
            files={_name(name): _file(**file) for name, file in document["files"].items()},
            made_with=document["made_with"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


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
    write_durably(folder / MANIFEST, json.dumps(asdict(manifest), indent=1).encode())


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
