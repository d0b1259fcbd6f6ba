"""When another shard may join those that are held, and which."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from jobs.database import Database
from jobs.settings import Settings
from jobs.store import joining, leases
from jobs.store.records import PRIORITIES, Claim, PublishableShard

# An engine may ask at every step; a ledger without work for it is left alone so long.
SECONDS_EMPTY_HANDED = 1.0


# Messages of shards that joined stay in their queue meanwhile, and a queue's length
# is what people scale by: now and then the held shards run out and they are read.
LONGEST_CHAIN_SECONDS = 900.0


@dataclass(kw_only=True)
class JoiningShards:
    """Claims shards of one model straight from the ledger, without starving the others.

    The ledger is the truth: the message of a shard that was claimed so finds it
    taken. Priorities come first, as in the queues; and once a model's turn has
    lasted as long as a worker stays with it while others wait, no shard joins,
    the held ones run out, and the queues decide who is next.

    Attributes:
        database: The ledger.
        settings: Its sticky_seconds is the longest turn.
        worker_id: Who claims.
        served: The models of this worker, which may be waiting.
        job_id: Only shards of this job join, and no other model is looked at.
        clock: Seconds, monotonic.
    """

    database: Database
    settings: Settings
    worker_id: str
    served: Collection[str]
    job_id: str | None = None
    clock: Callable[[], float] = time.monotonic
    _model: str | None = field(default=None, init=False)
    _turn_began: float = field(default=0.0, init=False)
    _chain_began: float = field(default=0.0, init=False)
    _ask_again_at: float = field(default=0.0, init=False)

    def begin(self, model: str) -> None:
        """A message of this model was taken: its turn begins, unless it goes on."""
        self._chain_began, self._ask_again_at = self.clock(), 0.0
        if model != self._model or self._turn_is_over():
            self._model, self._turn_began = model, self.clock()

    def claim_beside(self, held: Sequence[Claim]) -> Claim | None:
        """The next shard of the same model, claimed; None if none may join now.

        Args:
            held: The claims whose prompts will share batches with its own, one at
                least.

        Raises:
            DatabaseUnavailableError: The ledger does not answer.
        """
        now = self.clock()
        if now < self._ask_again_at or now - self._chain_began >= LONGEST_CHAIN_SECONDS:
            return None
        claim = self._claim_beside(held)
        if claim is None:
            self._ask_again_at = now + SECONDS_EMPTY_HANDED
        return claim

    def _claim_beside(self, held: Sequence[Claim]) -> Claim | None:
        found = joining.shard_to_join(self.database, held[0].model, job_id=self.job_id)
        if found is None or self._is_others_turn(found):
            return None
        # None as well if another worker was faster; there is a next time.
        return leases.claim_shard(
            self.database,
            found.shard_id,
            worker_id=self.worker_id,
            process=os.getpid(),
            lease_seconds=self.settings.lease_seconds,
            beside=held,
        )

    def _is_others_turn(self, found: PublishableShard) -> bool:
        others = [model for model in self.served if model != found.model]
        if self.job_id is not None or not others:
            return False
        waiting = joining.priority_waiting(self.database, others)
        if waiting is None:
            return False
        return self._turn_is_over() or _rank(waiting) < _rank(found.priority)

    def _turn_is_over(self) -> bool:
        return self.clock() - self._turn_began >= self.settings.sticky_seconds


def _rank(priority: str) -> int:
    return PRIORITIES.index(priority)
