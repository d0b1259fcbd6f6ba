"""Where an int8 store is made, and the lock that lets one process at a time make it.

A store is made in a folder beside its own, which takes the store's name when it
is complete. The kernel frees the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.interface import LoadInterruptedError

SECONDS_BETWEEN_TRIES = 0.5
_PARTIAL = ".partial"


def partial_folder(folder: Path) -> Path:
    """The folder in which a store is made."""
    return folder.with_name(f"{folder.name}{_PARTIAL}")


def complete_stores(stores: Path) -> list[Path]:
    """The folders of stores that were completed, in the folder of all stores."""
    return [folder for folder in _folders(stores) if folder.suffix != _PARTIAL]


def incomplete_stores(stores: Path) -> list[Path]:
    """The folders in which stores are made or were left, in the folder of all stores."""
    return [folder for folder in _folders(stores) if folder.suffix == _PARTIAL]


def _folders(stores: Path) -> list[Path]:
    if not stores.is_dir():
        return []
    return sorted(path for path in stores.iterdir() if path.is_dir())


@contextmanager
def store_lock(
    folder: Path, *, on_wait: Callable[[], None], should_stop: Callable[[], bool]
) -> Iterator[None]:
    """Hold the lock of a store, waiting for the process that has it.

    The lock's file stays: to delete it would let two processes hold locks of
    the same name.

    Args:
        folder: The store's, in a folder that exists.
        on_wait: Called at each try while another process has the lock.
        should_stop: Asked at each try.

    Raises:
        LoadInterruptedError: should_stop() turned true while waiting.
    """
    descriptor = os.open(_lock_file(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_lock(descriptor):
            if should_stop():
                raise LoadInterruptedError
            on_wait()
            time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def store_lock_if_free(folder: Path) -> Iterator[bool]:
    """Hold the lock of a store, complete or not, if no other process has it.

    Nothing is created.

    Yields:
        Whether no other process works on the store.
    """
    try:
        descriptor = os.open(_lock_file(folder), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True  # a process that makes a store makes the lock's file first
        return
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name.removesuffix(_PARTIAL)}.lock")


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
