"""Incomplete and damaged int8 copies of models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cli.faults import Fault
from engine.store.care import damaged_files, is_being_made, set_back
from engine.store.lock import complete_stores, incomplete_stores, store_lock_if_free


def left_stores(stores: Path) -> list[Path]:
    """The incomplete copies that no process is working on."""
    return [folder for folder in incomplete_stores(stores) if not is_being_made(folder)]


def store_faults(stores: Path, busy_models: set[str]) -> Iterator[Fault]:
    """Incomplete copies that no process is working on, and damaged complete ones.

    Every byte of the complete ones is read.

    Args:
        stores: The folder of all copies.
        busy_models: Models that a worker is loading; theirs are left alone.
    """
    for folder in left_stores(stores):
        yield Fault(
            kind="incomplete_store",
            subject=str(folder),
            found="an incomplete int8 copy; no process is working on it",
            mend="delete it",
            repair=partial(_delete, folder),
        )
    for folder in complete_stores(stores):
        alias = folder.name.rpartition("-")[0]
        if alias not in busy_models and (names := damaged_files(folder)):
            yield Fault(
                kind="damaged_store",
                subject=str(folder),
                found=f"damaged: {', '.join(names)}",
                mend="delete those files; the next load makes them again",
                repair=partial(_set_back, folder),
            )


def _delete(folder: Path) -> bool:
    with store_lock_if_free(folder) as is_ours:
        if not is_ours or not folder.exists():
            return False
        shutil.rmtree(folder)
        return True


def _set_back(folder: Path) -> bool:
    with store_lock_if_free(folder) as is_ours:
        if not is_ours or not (names := damaged_files(folder)):
            return False
        set_back(folder, names)
        return True
