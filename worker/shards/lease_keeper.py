"""Keeps a lease alive while the main thread loads a model or generates."""

from __future__ import annotations

import threading
from types import TracebackType

from jobs.database import Database
from jobs.errors import DatabaseUnavailableError
from jobs.store import leases
from jobs.store.records import Claim
from worker.log import Logger

RENEWALS_PER_LEASE = 3


class LeaseKeeper:
    """Renews in a thread of its own; `lost` is true once the shard is somebody else's.

    That is so after a cancel, or when this machine slept longer than the lease.
    """

    def __init__(self, database: Database, claim: Claim, lease_seconds: float, log: Logger) -> None:
        self._database = database
        self._claim = claim
        self._lease_seconds = lease_seconds
        self._log = log
        self._ended = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease-keeper", daemon=True)

    @property
    def lost(self) -> bool:
        return self._lost.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Renew no longer; may be called again."""
        self._ended.set()
        self._thread.join()

    def __enter__(self) -> LeaseKeeper:
        self.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _renew(self) -> None:
        while not self._ended.wait(self._lease_seconds / RENEWALS_PER_LEASE):
            try:
                if not leases.renew_lease(self._database, self._claim, self._lease_seconds):
                    self._lost.set()
                    return
            except DatabaseUnavailableError as error:
                # The fence refuses our writes if the lease runs out meanwhile.
                self._log.warning("lease_not_renewed", reason=error.message)
