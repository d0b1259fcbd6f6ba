"""A shard that this worker holds: its lease, its prompts, and what became of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Literal

from engine.interface import GenerationRequest, GenerationResult
from jobs.database import Database
from jobs.store import leases
from jobs.store.records import Claim, PromptOutcome
from worker.log import Logger
from worker.shards.lease_keeper import LeaseKeeper
from worker.shards.requests import outcome_of, requests_of

Outcome = Literal["not ours", "finished", "given back", "lost", "isolated", "job failed", "crashed"]


# An engine's key is the shard's number and the prompt's index in one.
KEYS_PER_SHARD = 2**32


class HeldShard:
    """One claim, from the start of its lease keeper to its outcome.

    Attributes:
        claim: The lease.
        number: Which of the shards that this run has held, from 0.
        log: Names the job and the shard.
        outcome: What became of it; None while it is held.
        total: Prompts that had no result when it was filled.
        unanswered: The indices that still have none.
        completion_tokens: Of its results so far.
    """

    def __init__(self, claim: Claim, number: int, keeper: LeaseKeeper, log: Logger) -> None:
        self.claim = claim
        self.number = number
        self.log = log
        self.outcome: Outcome | None = None
        self.total = 0
        self.unanswered: set[int] = set()
        self.completion_tokens = 0
        self.held_since = time.monotonic()
        self._keeper = keeper
        self._waiting: deque[GenerationRequest] = deque()
        self._taken_at: dict[int, float] = {}

    @property
    def is_lost(self) -> bool:
        """Whether it is somebody else's now, or nobody's."""
        return self.outcome == "lost" or self._keeper.lost

    @property
    def is_open(self) -> bool:
        """Whether its prompts are still to be generated here."""
        return self.outcome is None and not self._keeper.lost

    def fill(self, database: Database) -> list[PromptOutcome]:
        """Read the prompts without a result; the outcomes of those that are refused."""
        pending = leases.pending_prompts(database, self.claim)
        requests, refused = requests_of(self.claim, pending, self.number * KEYS_PER_SHARD)
        self._waiting = deque(requests)
        self.unanswered = {each.key % KEYS_PER_SHARD for each in requests}
        self.total = len(pending)
        return refused

    def take(self, at_most: int) -> list[GenerationRequest]:
        """The next requests for the engine."""
        if not self.is_open:
            return []
        now = time.monotonic()
        taken = [self._waiting.popleft() for _ in range(min(at_most, len(self._waiting)))]
        self._taken_at |= dict.fromkeys((each.key for each in taken), now)
        return taken

    def outcomes(self, results: Sequence[GenerationResult]) -> tuple[PromptOutcome, ...]:
        """Its results as the ledger keeps them."""
        return tuple(
            outcome_of(
                result,
                result.key % KEYS_PER_SHARD,
                queued_seconds=self.claim.queued_seconds,
                held_seconds=self._taken_at[result.key] - self.held_since,
            )
            for result in results
        )

    def answered(self, outcomes: Sequence[PromptOutcome]) -> None:
        """These results are written."""
        self.unanswered.difference_update(each.index for each in outcomes)
        self.completion_tokens += sum(each.completion_tokens for each in outcomes)

    def end(self, outcome: Outcome) -> None:
        """It is over with; the lease is renewed no longer."""
        self.outcome = outcome
        self._waiting.clear()
        self._taken_at.clear()
        self._keeper.stop()


def shard_number(key: int) -> int:
    """Which of the held shards a key is of."""
    return key // KEYS_PER_SHARD
