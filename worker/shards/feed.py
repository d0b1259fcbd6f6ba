"""Feeds an engine from the shards that a worker holds, and takes another when they run out.

With streamed weights a step costs the same for one row as for sixty, so the
rows that the last prompts of one shard leave empty take the first of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from engine.interface import GenerationRequest
from worker.shards.held_shard import HeldShard, shard_number


class ShardFeed:
    """A RequestFeed over several shards, oldest first.

    Args:
        first: The shard that was asked for. If it has to run alone, none joins.
        join: Claims another shard to go beside those of the feed, adds it and
            fills it; None if there is none now, or none is to be taken.
        most: Shards held at once.
    """

    def __init__(
        self,
        first: HeldShard,
        join: Callable[[ShardFeed], HeldShard | None],
        most: int,
    ) -> None:
        self.shards = [first]
        self._join = join
        self._most = most

    @property
    def held(self) -> list[HeldShard]:
        """The shards without an outcome, oldest first."""
        return [shard for shard in self.shards if shard.outcome is None]

    @property
    def is_lost(self) -> bool:
        """Whether shards are held, and none of them is ours any more."""
        held = self.held
        return bool(held) and not any(shard.is_open for shard in held)

    def add(self, shard: HeldShard) -> None:
        """It takes part from now on."""
        self.shards.append(shard)

    def take(self, at_most: int) -> list[GenerationRequest]:
        """The next requests; fewer only if no shard has any and none joins."""
        taken: list[GenerationRequest] = []
        for shard in self._shards_in_turn():
            taken += shard.take(at_most - len(taken))
            if len(taken) == at_most:
                break
        return taken

    def is_wanted(self, key: int) -> bool:
        """Whether the request's shard is still ours."""
        return self.shards[shard_number(key)].is_open

    def _shards_in_turn(self) -> Iterator[HeldShard]:
        yield from self.held
        # Beside none that is held, the queue says what comes next.
        while 0 < len(self.held) < self._most and not self.shards[0].claim.runs_alone:
            shard = self._join(self)
            if shard is None:
                return
            yield shard
