"""Looking after int8 copies that no process uses: damaged and incomplete ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.store.lock import partial_folder, store_lock_if_free


def is_being_made(folder: Path) -> bool:
    """Whether some process works on a copy, complete or not."""
    with store_lock_if_free(folder) as is_ours:
        return not is_ours


def damaged_files(folder: Path) -> list[str]:
    """The files of a finished copy that are missing or not as they were written; reads them all.

    A folder without a manifest is no copy of ours, and has none.
    """
    from engine.store.manifest import damaged_files as damaged_files_of
    from engine.store.manifest import read_manifest

    manifest = read_manifest(folder)
    if manifest is None:
        return []
    return damaged_files_of(folder, manifest, on_progress=lambda _: None, should_stop=lambda: False)


def set_back(folder: Path, damaged: Sequence[str]) -> None:
    """Make a finished copy incomplete again, without these files; the caller holds its lock."""
    partial = partial_folder(folder)
    shutil.rmtree(partial, ignore_errors=True)
    # Its name first: no process may find a copy that lacks files.
    folder.rename(partial)
    for name in damaged:
        (partial / name).unlink(missing_ok=True)
