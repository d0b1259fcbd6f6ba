"""Looking after int8 copies that nobody uses at the moment: damaged and half-made ones."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


def is_being_made(folder: Path) -> bool:
    """Whether some process works on a copy, finished or not."""
    with held(folder) as is_ours:
        return not is_ours


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Keep others from making a copy; False, and nothing is held, if one does so already."""
    lock = folder.with_name(f"{folder.name.removesuffix(PARTIAL)}.lock")
    try:
        file = lock.open("r+")
    except FileNotFoundError:
        yield True  # whoever makes a copy makes the lock first
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def is_resumable(folder: Path) -> bool:
    """Whether a half-made copy says what it is, so that the next load goes on with it."""
    from engine.store.manifest import read_manifest

    return read_manifest(folder) is not None


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
    """Make a finished copy half made again, without these files; the caller holds it."""
    partial = folder.with_name(f"{folder.name}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    # Its name first: nobody may find a copy that lacks files.
    folder.rename(partial)
    for name in damaged:
        (partial / name).unlink(missing_ok=True)
