"""Imports the engine before a shard of a real model is claimed.

torch takes seconds to import, tens of them from a cold disk, and while its
libraries are linked no other thread of the process runs: the one that renews
leases neither. A shard that is claimed first may lose its lease meanwhile, which
would look like a worker that died of the model.
"""

from __future__ import annotations

import mmap
import sys
import time
from importlib import import_module

from worker.log import Logger

ENGINE_MODULE = "engine.load"


class EngineImports:
    """Remembers over the deaths of children whether one died of an import.

    Made in the parent: one byte of memory that its forks share. A death before
    the claim is counted by nobody, so a library that kills its process would be
    imported for ever. The next child leaves the import to the load, under the
    claim, where the ledger counts the deaths and ends the job.
    """

    def __init__(self) -> None:
        self._begun = mmap.mmap(-1, 1)

    @property
    def are_done(self) -> bool:
        """Whether this process has the engine."""
        return sys.modules.get(ENGINE_MODULE) is not None

    def make(self, log: Logger) -> None:
        """Import the engine, unless it is there or the last try ended a process."""
        if self.are_done:
            self._begun[0] = 0
            return
        if self._begun[0]:
            log.warning("engine_import_left_to_load", reason="a process died of it, or meanwhile")
            return
        started = time.monotonic()
        self._begun[0] = 1
        try:
            import_module(ENGINE_MODULE)
        except Exception as error:
            # The load meets it again, and has a job to tell.
            log.warning("engine_not_imported", reason=f"{type(error).__name__}: {error}")
        else:
            log.info("engine_imported", seconds=round(time.monotonic() - started, 2))
        self._begun[0] = 0
