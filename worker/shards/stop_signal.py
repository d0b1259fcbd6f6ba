"""How the parent tells its child to stop, and how a child notices a dead parent."""

from __future__ import annotations

import mmap
import os


class StopSignal:
    """A flag shared by a process and its later forks, in one byte of shared memory.

    Polling it costs a memory read, so the engine can ask before every decode
    step; there is no lock that a killed process could leave taken.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)
        self._owner = os.getpid()

    def set(self) -> None:
        self._shared[0] = 1

    def is_set(self) -> bool:
        """True once the flag is set, or when the process that made it is gone."""
        if self._shared[0]:
            return True
        return os.getpid() != self._owner and os.getppid() != self._owner
