"""One window of an engine's work as the records of the shards it was done for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from engine.interface import GenerationResult, ModelDescription, Window
from jobs.store.records import MicroBatchRecord, PromptOutcome
from worker.shards.feed import ShardFeed
from worker.shards.held_shard import HeldShard, shard_number


def split_window(
    batch: Window, feed: ShardFeed, model: ModelDescription
) -> list[tuple[HeldShard, MicroBatchRecord]]:
    """A record for each shard that has results in the window.

    What the window took (seconds, steps, bytes) is divided by the shards' share
    of its finished rows, so that sums over shards and jobs count it once. The
    rows alive and the room for them are the window's, in each record. A window
    without results goes to the oldest shard, and results of a shard that is
    lost go nowhere.
    """
    by_shard: dict[int, list[GenerationResult]] = {}
    for result in batch.results:
        by_shard.setdefault(shard_number(result.key), []).append(result)
    held = {shard.number: shard for shard in feed.held if shard.is_open}
    mine = [number for number in held if number in by_shard] or list(held)[:1]
    results = [by_shard.get(number, []) for number in mine]
    parts = _parts([max(len(each), 1) for each in results])
    return [
        (held[number], _record(batch, part, model, held[number].outcomes(each)))
        for number, part, each in zip(mine, parts, results, strict=True)
    ]


def no_batch(outcomes: Sequence[PromptOutcome]) -> MicroBatchRecord:
    """Results that nothing was generated for."""
    return MicroBatchRecord(
        device="",
        compute_mode="",
        rows=0,
        prompt_tokens=0,
        completion_tokens=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        out_of_memory_retries=0,
        outcomes=tuple(outcomes),
    )


class _Part:
    """One of the pieces that a window's totals are cut into, from low to high of all weights."""

    def __init__(self, low: int, high: int, whole: int) -> None:
        self._low, self._high, self._whole = low, high, whole

    def of_count(self, total: int) -> int:
        """Its part of a whole number; the parts add up to the total."""
        return total * self._high // self._whole - total * self._low // self._whole

    def of_seconds(self, total: float) -> float:
        return total * (self._high - self._low) / self._whole


def _parts(weights: Sequence[int]) -> list[_Part]:
    bounds = list(accumulate(weights, initial=0))
    return [_Part(low, high, bounds[-1]) for low, high in pairwise(bounds)]


def _record(
    batch: Window, part: _Part, model: ModelDescription, outcomes: tuple[PromptOutcome, ...]
) -> MicroBatchRecord:
    return MicroBatchRecord(
        device=model.device,
        compute_mode=model.compute_mode,
        rows=batch.rows,
        prompt_tokens=sum(each.prompt_tokens for each in outcomes),
        completion_tokens=sum(each.completion_tokens for each in outcomes),
        prefill_seconds=part.of_seconds(batch.prefill_seconds),
        decode_seconds=part.of_seconds(batch.decode_seconds),
        out_of_memory_retries=part.of_count(batch.out_of_memory_retries),
        outcomes=outcomes,
        steps=part.of_count(batch.steps),
        row_steps=part.of_count(batch.row_steps),
        row_capacity=batch.row_capacity,
        streamed_bytes=part.of_count(batch.streamed_bytes),
        link_wait_seconds=part.of_seconds(batch.link_wait_seconds),
        compute_seconds=part.of_seconds(batch.compute_seconds),
    )
