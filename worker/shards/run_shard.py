"""Shards from claim to finish: no Celery, no torch.

Claim the one that was asked for, get the engine, generate what has no result
yet, write each window of results as it comes, end the shard. Others of the
same model join it as it runs out (worker/shards/feed.py). Whatever happens, each
of them is finished, given back, or somebody else's when `run` returns.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.interface import Engine, LoadInterruptedError, ModelLoadError, Window
from jobs.database import Database
from jobs.errors import DatabaseUnavailableError, LeaseLostError
from jobs.settings import Settings
from jobs.store import leases, recording, recovery
from jobs.store.records import Claim, MicroBatchRecord
from worker.log import Logger
from worker.models.engine_host import EngineHost
from worker.shards.feed import ShardFeed
from worker.shards.held_shard import HeldShard, Outcome
from worker.shards.joining import JoiningShards
from worker.shards.lease_keeper import LeaseKeeper
from worker.shards.requests import storable
from worker.shards.window_records import no_batch, split_window

# How long finished rows wait for a database that is away, before the shard is
# left to its lease and the rows are generated again by whoever comes next.
DATABASE_PATIENCE_SECONDS = 600.0


DATABASE_RETRY_SECONDS = 1.0


# Of several shards' outcomes, the one that asks most of the caller is told.
GRAVEST_FIRST: tuple[Outcome, ...] = ("crashed", "given back", "job failed", "lost", "finished")


@dataclass(kw_only=True)
class ShardRunner:
    """Runs shards for one worker, several of a model at once.

    Attributes:
        job_id: Only shards of this job join the one that is run.
    """

    database: Database
    engines: EngineHost
    settings: Settings
    worker_id: str
    log: Logger
    should_stop: Callable[[], bool]
    job_id: str | None = None
    joining: JoiningShards = field(init=False)

    def __post_init__(self) -> None:
        self.joining = JoiningShards(
            database=self.database,
            settings=self.settings,
            worker_id=self.worker_id,
            served=self.engines.models,
            job_id=self.job_id,
        )

    def run(self, shard_id: int) -> Outcome:
        """Run a shard as far as it goes, and those that join it.

        Returns:
            What became of it, or the gravest of what became of them. "not
            ours", "lost" and "isolated" need nothing more; after "given back"
            and "crashed" a shard waits for a message.
        """
        # Before the claim: nobody could renew its lease meanwhile.
        self.engines.import_for(shard_id)
        claim = leases.claim_shard(
            self.database,
            shard_id,
            worker_id=self.worker_id,
            process=os.getpid(),
            lease_seconds=self.settings.lease_seconds,
        )
        if claim is None:
            self.log.info("shard_not_claimed", shard=shard_id)
            return "not ours"
        refusal = self._refusal(claim)
        if refusal is not None:
            return refusal
        self.joining.begin(claim.model)
        feed = ShardFeed(self._hold(claim, 0), self._join, self.settings.shards_at_once)
        try:
            self._run(feed)
        finally:
            for shard in feed.held:  # left to their leases
                shard.end("lost")
        outcomes = {shard.outcome for shard in feed.shards}
        return next(each for each in GRAVEST_FIRST if each in outcomes)

    def _refusal(self, claim: Claim) -> Outcome | None:
        """What became of a shard that must not be run."""
        log = self.log.bind(job=claim.job_id, shard=claim.shard_id)
        if claim.load_crashes >= self.settings.max_crashes:
            reason = (
                f"{claim.load_crashes} workers died while loading the model, most likely because "
                "it does not fit their memory: see the kernel's log, or use a smaller model"
            )
            log.error("model_not_loaded", model=claim.model, reason=reason)
            leases.fail_job(self.database, claim, code="model_load_failed", message=reason)
            return "job failed"
        if recovery.isolate_poison(self.database, claim, self.settings.max_crashes):
            log.warning("shard_isolated", reason="it keeps killing its worker")
            return "isolated"
        if not self.engines.serves(claim.model):
            log.warning("shard_refused", model=claim.model, reason="not in this catalogue")
            leases.release_shard(self.database, claim)
            return "given back"
        return None

    def _run(self, feed: ShardFeed) -> None:
        """Give each shard of the feed its outcome."""
        (first,) = feed.held

        def should_stop() -> bool:
            return self.should_stop() or feed.is_lost

        try:
            engine = self._engine(first.claim, should_stop)
            self._fill(first)
            self._generate(engine, feed, should_stop)
        except LoadInterruptedError:
            self._give_back(first)
        except ModelLoadError as error:
            # On the way to the model, or of weights that are read while it runs.
            self.engines.unload()
            for shard in feed.held:
                self._fail_job(shard, storable(str(error)))
        except LeaseLostError:
            _lose(first)
        except DatabaseUnavailableError:
            raise
        except Exception as error:
            # The engine's state is unknown now (a CUDA error poisons its
            # context), so the next attempt starts from a fresh load.
            first.log.exception("shard_crashed", shards=[each.claim.shard_id for each in feed.held])
            self.engines.unload()
            reason = storable(f"{type(error).__name__}: {error}"[:2000])
            for shard in feed.held:
                self._release_crashed(shard, reason)

    def _release_crashed(self, shard: HeldShard, reason: str) -> None:
        """Give a shard back whose run failed, or fail its job if the model is at fault."""
        most = self.settings.max_crashes
        if not recovery.fails_for_all(self.database, shard.claim, reason, most):
            was_ours = leases.release_shard(self.database, shard.claim, error=reason)
            shard.end("crashed" if was_ours else "lost")
            return
        self._fail_job(shard, f"the model fails with every prompt; the last error was: {reason}")

    def _engine(self, claim: Claim, should_stop: Callable[[], bool]) -> Engine:
        """The engine with the claim's model, its load marked in the ledger.

        What kills a worker while it loads is the model, not a prompt: the mark
        keeps the two apart.
        """
        if self.engines.holds(claim.model):
            return self.engines.engine_for(claim.model, should_stop)
        leases.set_loading(self.database, claim, True)
        engine = self.engines.engine_for(claim.model, should_stop)
        leases.set_loading(self.database, claim, False)
        return engine

    def _generate(self, engine: Engine, feed: ShardFeed, should_stop: Callable[[], bool]) -> None:
        """Generate and record window by window, and end each shard with its last result."""
        for batch in engine.generate(feed, should_stop=should_stop):
            for shard, record in split_window(batch, feed, engine.model):
                self._record(shard, record)
                _log_window(shard.log, batch, record)
            for shard in feed.held:
                if not shard.is_open:
                    _lose(shard)
                elif not shard.unanswered:
                    self._finish(shard)
        was_stopped = should_stop()
        for shard in feed.held:
            if not shard.is_open:
                _lose(shard)
            elif not shard.unanswered:
                self._finish(shard)
            elif was_stopped:
                self._give_back(shard)
            else:
                # Finishing the shard now would lose them for good.
                left = f"{len(shard.unanswered)} of {shard.total}"
                raise RuntimeError(f"the engine left out {left} prompts")

    def _hold(self, claim: Claim, number: int) -> HeldShard:
        log = self.log.bind(job=claim.job_id, shard=claim.shard_id)
        keeper = LeaseKeeper(self.database, claim, self.settings.lease_seconds, log)
        keeper.start()
        return HeldShard(claim, number, keeper, log)

    def _fill(self, shard: HeldShard) -> None:
        refused = shard.fill(self.database)
        claim = shard.claim
        shard.log.info(
            "shard_started", model=claim.model, attempt=claim.attempt, prompts=shard.total
        )
        if refused:
            self._record(shard, no_batch(refused))

    def _join(self, feed: ShardFeed) -> HeldShard | None:
        """Another shard of the model, to go beside those that are held."""
        if self.should_stop():
            return None
        shard: HeldShard | None = None
        try:
            claim = self.joining.claim_beside([shard.claim for shard in feed.held])
            if claim is None:
                return None
            shard = self._hold(claim, len(feed.shards))
            self._fill(shard)
        except DatabaseUnavailableError as error:
            self.log.warning("shard_not_joined", reason=error.message)
            if shard is not None:
                shard.end("lost")  # left to its lease
            return None
        feed.add(shard)
        return shard

    def _record(self, shard: HeldShard, record: MicroBatchRecord) -> None:
        try:
            self._persistently(
                lambda: recording.record_micro_batch(
                    self.database, shard.claim, record, self.settings.lease_seconds
                )
            )
        except LeaseLostError:
            _lose(shard)
        else:
            shard.answered(record.outcomes)

    def _persistently(self, write: Callable[[], object]) -> None:
        """Write finished work even if the database is away for a while."""
        deadline = time.monotonic() + DATABASE_PATIENCE_SECONDS
        while True:
            try:
                write()
                return
            except DatabaseUnavailableError as error:
                if time.monotonic() > deadline or self.should_stop():
                    raise
                self.log.warning("results_wait_for_database", reason=error.message)
                time.sleep(DATABASE_RETRY_SECONDS)

    def _finish(self, shard: HeldShard) -> None:
        try:
            self._persistently(lambda: leases.finish_shard(self.database, shard.claim))
        except LeaseLostError:
            _lose(shard)
            return
        seconds = time.monotonic() - shard.held_since
        shard.log.info(
            "shard_generated",
            completion_tokens=shard.completion_tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(shard.completion_tokens / seconds, 1) if seconds else None,
        )
        shard.end("finished")

    def _give_back(self, shard: HeldShard) -> None:
        if not shard.is_open:
            _lose(shard)
            return
        leases.release_shard(self.database, shard.claim)
        shard.log.info("shard_given_back", reason="the worker is stopping")
        shard.end("given back")

    def _fail_job(self, shard: HeldShard, reason: str) -> None:
        shard.log.error("model_not_loaded", model=shard.claim.model, reason=reason)
        try:
            leases.fail_job(self.database, shard.claim, code="model_load_failed", message=reason)
        except LeaseLostError:
            _lose(shard)
        else:
            shard.end("job failed")


def _lose(shard: HeldShard) -> None:
    shard.log.info("shard_lost", reason="cancelled, or taken over after the lease ran out")
    shard.end("lost")


def _log_window(log: Logger, batch: Window, record: MicroBatchRecord) -> None:
    seconds = record.prefill_seconds + record.decode_seconds
    log.info(
        "micro_batch",
        rows=batch.rows,
        finished=len(record.outcomes),
        failed=sum(each.error_code is not None for each in record.outcomes),
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.completion_tokens,
        prefill_seconds=round(record.prefill_seconds, 3),
        decode_seconds=round(record.decode_seconds, 3),
        tokens_per_second=round(record.completion_tokens / seconds, 1) if seconds else None,
        rows_per_step=round(batch.row_steps / batch.steps, 1) if batch.steps else None,
        link_wait_seconds=round(record.link_wait_seconds, 3),
        out_of_memory_retries=record.out_of_memory_retries,
    )
