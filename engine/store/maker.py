"""Writes a store's files into a folder, going on with what is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from engine.checkpoint.folder import Checkpoint
from engine.interface import LoadProgress, ModelLoadError
from engine.store.contents import StoreContents, StoreFile
from engine.store.manifest import (
    MANIFEST,
    StoreManifest,
    StoreOrigin,
    read_manifest,
    write_durably,
    write_manifest,
)
from engine.store.write import TensorStream, companion_files, write_store_file

# Beyond the tensors: headers, the tokenizer, the file system's own bookkeeping.
DISK_MARGIN_BYTES = 64 * 2**20


_LIBRARIES = ("torch", "transformers", "bitsandbytes")


class StoreMaker:
    """Writes the files that are not there yet; a file is listed once it is on the disk."""

    def __init__(
        self,
        folder: Path,
        origin: StoreOrigin,
        plan: StoreContents,
        on_progress: Callable[[LoadProgress], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._on_progress = on_progress
        self._should_stop = should_stop
        self._manifest = StoreManifest(origin=origin, total_bytes=plan.bytes)
        # Summed once: it is said with every few rows.
        self._bytes_total = plan.bytes
        self._bytes_done = 0

    def make(self, checkpoint: Checkpoint, stream: TensorStream) -> StoreManifest:
        """Write what is missing; the manifest then lists everything.

        Raises:
            ModelLoadError: The disk has no room for it.
            LoadInterruptedError: should_stop() turned true.
            OSError: The disk is full or broken.
        """
        waiting = self._resume()
        self._bytes_done = self._bytes_total - sum(file.bytes for file in waiting)
        # Said before anything is written: the total is what it will take.
        self._advance(0)
        self._require_room(sum(file.bytes for file in waiting))
        self._begin(stream)
        for file in waiting:
            written = write_store_file(
                self._folder / file.name,
                file,
                stream,
                on_bytes=self._advance,
                should_stop=self._should_stop,
            )
            self._manifest = self._manifest.adding(file.name, written)
            write_manifest(self._folder, self._manifest)
        for name, data in companion_files(checkpoint, self._plan).items():
            self._manifest = self._manifest.adding(name, write_durably(self._folder / name, data))
        # Only now: it is long, and what is half made is not read by it.
        self._manifest = replace(self._manifest, layout=self._plan.layout)
        write_manifest(self._folder, self._manifest)
        return self._manifest

    def _resume(self) -> list[StoreFile]:
        """Keep the finished files of an interrupted attempt; return those to write."""
        earlier = read_manifest(self._folder)
        if earlier is None or earlier.origin != self._manifest.origin:
            shutil.rmtree(self._folder, ignore_errors=True)
            return list(self._plan.files)
        planned = {file.name for file in self._plan.files}
        kept = earlier.intact_files(self._folder) & planned
        for path in self._folder.iterdir():
            if path.name not in kept and path.name != MANIFEST:
                path.unlink()
        files = {name: earlier.files[name] for name in sorted(kept)}
        self._manifest = replace(self._manifest, files=files)
        return [file for file in self._plan.files if file.name not in kept]

    def _begin(self, stream: TensorStream) -> None:
        self._folder.mkdir(exist_ok=True)
        made_with = {name: version(name) for name in _LIBRARIES}
        made_with["device"] = str(stream.device)
        self._manifest = replace(self._manifest, made_with=made_with)
        write_manifest(self._folder, self._manifest)

    def _require_room(self, wanted_bytes: int) -> None:
        free_bytes = free_disk_bytes(self._folder.parent)
        if wanted_bytes + DISK_MARGIN_BYTES > free_bytes:
            raise ModelLoadError(
                f"the int8 store needs {_gib(wanted_bytes + DISK_MARGIN_BYTES)} in "
                f"{self._folder.parent}, where {_gib(free_bytes)} are free; free some room there, "
                "or choose another place for stores"
            )

    def _advance(self, count: int) -> None:
        self._bytes_done += count
        self._on_progress(
            LoadProgress(
                stage="prepare", done=self._bytes_done, total=self._bytes_total, unit="bytes"
            )
        )


def free_disk_bytes(folder: Path) -> int:
    """What an ordinary user may still write where a folder is."""
    facts = os.statvfs(folder)
    return facts.f_bavail * facts.f_frsize


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
