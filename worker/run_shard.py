"""One shard from claim to finish: no Celery, no torch.

Claim it, get the engine, generate what has no result yet, write each
micro-batch as it finishes, end the shard. Whatever happens, the shard is
finished, given back, or somebody else's when `run` returns.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jobs.database import Database
from jobs.errors import DatabaseUnavailableError, LeaseLostError
from jobs.settings import Settings
from jobs.spec import ParameterError, resolve_parameters
from jobs.store import leases, recording, recovery
from jobs.store.records import Claim, MicroBatchRecord, PendingPrompt, PromptOutcome
from worker.engine.engine import (
    ChatMessage,
    Engine,
    GenerationRequest,
    GenerationResult,
    LoadInterruptedError,
    MicroBatch,
    ModelLoadError,
    RequestList,
    SamplingParameters,
)
from worker.engine_host import EngineHost
from worker.lease_keeper import LeaseKeeper
from worker.log import Logger

Outcome = Literal["not ours", "finished", "given back", "lost", "isolated", "job failed", "crashed"]

# How long finished rows wait for a database that is away, before the shard is
# left to its lease and the rows are generated again by whoever comes next.
DATABASE_PATIENCE_SECONDS = 600.0
DATABASE_RETRY_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class ShardRunner:
    """Runs shards, one at a time, for one worker."""

    database: Database
    engines: EngineHost
    settings: Settings
    worker_id: str
    log: Logger
    should_stop: Callable[[], bool]

    def run(self, shard_id: int) -> Outcome:
        """Run a shard as far as it goes.

        Returns:
            What became of it. "not ours", "lost" and "isolated" need nothing
            more; after "given back" and "crashed" the shard waits for a message.
        """
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
        log = self.log.bind(job=claim.job_id, shard=shard_id)
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
        with LeaseKeeper(self.database, claim, self.settings.lease_seconds, log) as keeper:
            try:
                return self._run_claimed(claim, keeper, log)
            except LeaseLostError:
                log.info("shard_lost", reason="cancelled, or taken over after the lease ran out")
                return "lost"

    def _run_claimed(self, claim: Claim, keeper: LeaseKeeper, log: Logger) -> Outcome:
        def should_stop() -> bool:
            return keeper.lost or self.should_stop()

        try:
            engine = self._engine(claim, should_stop)
            unanswered = self._generate(claim, engine, should_stop, log)
            if keeper.lost:
                raise LeaseLostError()
            if unanswered:
                return self._give_back(claim, log)
            self._persistently(lambda: leases.finish_shard(self.database, claim))
        except LoadInterruptedError:
            return "lost" if keeper.lost else self._give_back(claim, log)
        except ModelLoadError as error:
            log.error("model_not_loaded", model=claim.model, reason=str(error))
            reason = _storable(str(error))
            leases.fail_job(self.database, claim, code="model_load_failed", message=reason)
            return "job failed"
        except (DatabaseUnavailableError, LeaseLostError):
            raise
        except Exception as error:
            # The engine's state is unknown now (a CUDA error poisons its
            # context), so the next attempt starts from a fresh load.
            log.exception("shard_crashed")
            self.engines.unload()
            reason = _storable(f"{type(error).__name__}: {error}"[:2000])
            leases.release_shard(self.database, claim, error=reason)
            return "crashed"
        return "finished"

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

    def _generate(
        self, claim: Claim, engine: Engine, should_stop: Callable[[], bool], log: Logger
    ) -> int:
        """Generate and record what has no result; how many prompts were left over."""
        started = time.monotonic()
        pending = leases.pending_prompts(self.database, claim)
        log.info("shard_started", model=claim.model, attempt=claim.attempt, prompts=len(pending))
        requests, refused = _requests(claim, pending)
        if refused:
            self._record(claim, _no_batch(refused))
        tokens = 0
        unanswered = {request.key for request in requests}
        batch_started = time.monotonic()
        for batch in engine.generate(RequestList(requests), should_stop=should_stop):
            queued_seconds = claim.queued_seconds + batch_started - started
            outcomes = tuple(_outcome(result, queued_seconds) for result in batch.results)
            self._record(claim, _record(engine, batch, outcomes))
            unanswered -= {result.key for result in batch.results}
            tokens += batch.completion_tokens
            _log_batch(log, batch)
            batch_started = time.monotonic()
        if unanswered and not should_stop():
            # Finishing the shard now would lose them for good.
            raise RuntimeError(f"the engine left out {len(unanswered)} of {len(requests)} prompts")
        seconds = time.monotonic() - started
        log.info(
            "shard_generated",
            completion_tokens=tokens,
            seconds=round(seconds, 3),
            tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        )
        return len(unanswered)

    def _record(self, claim: Claim, record: MicroBatchRecord) -> None:
        self._persistently(
            lambda: recording.record_micro_batch(
                self.database, claim, record, self.settings.lease_seconds
            )
        )

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

    def _give_back(self, claim: Claim, log: Logger) -> Outcome:
        leases.release_shard(self.database, claim)
        log.info("shard_given_back", reason="the worker is stopping")
        return "given back"


def _requests(
    claim: Claim, pending: list[PendingPrompt]
) -> tuple[list[GenerationRequest], list[PromptOutcome]]:
    requests, refused = [], []
    for prompt in pending:
        try:
            requests.append(_request(claim, prompt))
        except ParameterError as error:
            refused.append(
                PromptOutcome.not_generated(
                    prompt.index, claim.queued_seconds, code=error.code, message=error.message
                )
            )
    return requests, refused


def _request(claim: Claim, prompt: PendingPrompt) -> GenerationRequest:
    given = resolve_parameters(claim.job_parameters, prompt.parameters or {})
    return GenerationRequest(
        key=prompt.index,
        prompt=_messages(prompt.messages) if prompt.messages else prompt.prompt or "",
        parameters=SamplingParameters(
            max_new_tokens=given.max_new_tokens,
            min_new_tokens=given.min_new_tokens,
            temperature=given.temperature,
            top_p=given.top_p,
            top_k=given.top_k,
            repetition_penalty=given.repetition_penalty,
            stop=tuple(given.stop),
            seed=derived_seed(claim.job_id, prompt.index) if given.seed is None else given.seed,
            eos_token_ids=given.eos_token_ids,
            logprobs=given.logprobs,
            echo=given.echo,
        ),
    )


def derived_seed(job_id: str, index: int) -> int:
    """The seed of a prompt that names none: the same whenever its job is run again."""
    digest = hashlib.sha256(f"{job_id}:{index}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _messages(messages: list[dict[str, str]]) -> tuple[ChatMessage, ...]:
    return tuple(ChatMessage(role=each["role"], content=each["content"]) for each in messages)


def _outcome(result: GenerationResult, queued_seconds: float) -> PromptOutcome:
    return PromptOutcome(
        index=result.key,
        text=None if result.text is None else _storable(result.text),
        finish_reason=result.finish_reason,
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        queued_seconds=queued_seconds,
        prefill_seconds=result.prefill_seconds,
        decode_seconds=result.decode_seconds,
        error_code=result.error.code if result.error else None,
        error_message=_storable(result.error.message) if result.error else None,
    )


def _storable(text: str) -> str:
    """The text without what a database refuses: a NUL on Postgres, half of a surrogate pair."""
    whole = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _record(
    engine: Engine, batch: MicroBatch, outcomes: tuple[PromptOutcome, ...]
) -> MicroBatchRecord:
    return MicroBatchRecord(
        device=engine.model.device,
        compute_mode=engine.model.compute_mode,
        rows=batch.rows,
        prompt_tokens=batch.prompt_tokens,
        completion_tokens=batch.completion_tokens,
        prefill_seconds=batch.prefill_seconds,
        decode_seconds=batch.decode_seconds,
        out_of_memory_retries=batch.out_of_memory_retries,
        outcomes=outcomes,
    )


def _no_batch(outcomes: list[PromptOutcome]) -> MicroBatchRecord:
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


def _log_batch(log: Logger, batch: MicroBatch) -> None:
    seconds = batch.prefill_seconds + batch.decode_seconds
    log.info(
        "micro_batch",
        rows=batch.rows,
        failed=sum(result.error is not None for result in batch.results),
        prompt_tokens=batch.prompt_tokens,
        completion_tokens=batch.completion_tokens,
        prefill_seconds=round(batch.prefill_seconds, 3),
        decode_seconds=round(batch.decode_seconds, 3),
        tokens_per_second=round(batch.completion_tokens / seconds, 1) if seconds else None,
        out_of_memory_retries=batch.out_of_memory_retries,
    )
