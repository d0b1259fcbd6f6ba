"""One process at a time makes a store; the kernel frees the lock of one that dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.interface import LoadInterruptedError

SECONDS_BETWEEN_TRIES = 0.5


@contextmanager
def store_lock(
    path: Path, *, on_wait: Callable[[], None], should_stop: Callable[[], bool]
) -> Iterator[None]:
    """Hold an exclusive lock on a file, waiting for whoever has it.

    The file stays: to delete it would let two processes hold locks of the
    same name.

    Args:
        path: Created if need be.
        on_wait: Called at each try while another process has the lock.
        should_stop: Asked at each try.

    Raises:
        LoadInterruptedError: should_stop() turned true while waiting.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _try_lock(descriptor):
            if should_stop():
                raise LoadInterruptedError
            on_wait()
            time.sleep(SECONDS_BETWEEN_TRIES)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
