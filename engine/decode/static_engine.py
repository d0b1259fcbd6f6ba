"""The engine that runs static micro-batches through transformers' own generate()."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

from transformers import GenerationConfig

from engine.decode.out_of_memory import is_out_of_memory, out_of_memory
from engine.decode.prompts import EncodedPrompt, PromptEncoder, RefusedPromptError
from engine.decode.row import failed, failed_request
from engine.decode.special_tokens import special_tokens_of
from engine.decode.static_batch import BatchGenerator, RunModel
from engine.decode.static_order import longest_first, take_micro_batch
from engine.device import free_unused_memory
from engine.interface import (
    GenerationRequest,
    GenerationResult,
    ModelDescription,
    RequestFeed,
    Window,
)
from engine.layout.families import family_of
from engine.model.loaded import Int8Model

DEFAULT_MICRO_BATCH_ROWS = 16


# Taken off the feed together, so that rows of like length can be put together.
REQUESTS_AT_ONCE = 256


class TransformersEngine:
    """An Engine over one loaded model.

    The micro-batch starts at micro_batch_rows and is halved when memory runs
    out; the size that worked is kept for the life of the engine.
    """

    def __init__(
        self,
        loaded: Int8Model,
        description: ModelDescription,
        *,
        micro_batch_rows: int = DEFAULT_MICRO_BATCH_ROWS,
        run_model: RunModel | None = None,
    ) -> None:
        """Wrap a loaded model; run_model stands in for its generate() in tests."""
        if micro_batch_rows < 1:
            raise ValueError(f"micro_batch_rows is {micro_batch_rows} and must be at least 1")
        self._model = description
        self._rows = micro_batch_rows
        self._free = loaded.free
        family = family_of(loaded.model.config)
        special_tokens = special_tokens_of(loaded.model, loaded.tokenizer)
        # generate() fills what a call leaves open from here.
        loaded.model.generation_config = GenerationConfig()
        self._shared_context_tokens = (
            None if family.is_encoder_decoder else description.context_tokens
        )
        bos = loaded.tokenizer.bos_token_id
        self._encoder = PromptEncoder(
            tokenizer=loaded.tokenizer,
            family=family,
            context_tokens=description.context_tokens,
            vocabulary_rows=loaded.model.get_input_embeddings().weight.shape[0],
            blank_token_ids=(special_tokens.eos if bos is None else (bos,))[:1],
        )
        self._batches: BatchGenerator | None = BatchGenerator(
            run_model=run_model or loaded.model.generate,
            tokenizer=loaded.tokenizer,
            family=family,
            special_tokens=special_tokens,
            device=loaded.device,
        )

    @property
    def model(self) -> ModelDescription:
        return self._model

    @property
    def micro_batch_rows(self) -> int:
        """The size of the next micro-batch."""
        return self._rows

    def generate(self, feed: RequestFeed, *, should_stop: Callable[[], bool]) -> Iterator[Window]:
        """Yield each micro-batch as soon as its rows are finished; see Engine."""
        while requests := feed.take(REQUESTS_AT_ONCE):
            was_interrupted = yield from self._generate(requests, should_stop)
            if was_interrupted:
                return

    def _generate(
        self, requests: Sequence[GenerationRequest], should_stop: Callable[[], bool]
    ) -> Generator[Window, None, bool]:
        """The same for some requests; whether should_stop() ended it."""
        prompts, refused = self._encode(requests)
        if refused:
            yield refused
        waiting = longest_first(prompts)
        while waiting:
            if should_stop():
                return True
            micro_batch, was_interrupted = self._run_next(waiting, should_stop)
            if micro_batch.results:
                yield micro_batch
            if was_interrupted:
                return True
        return False

    def close(self) -> None:
        """Free everything the model holds, on every device."""
        self._batches = None
        self._free()
        free_unused_memory()

    def _encode(
        self, requests: Sequence[GenerationRequest]
    ) -> tuple[list[EncodedPrompt], Window | None]:
        """The prompts that can be run, and the others' errors as one batch of no rows."""
        prompts, refused = [], []
        for request in requests:
            try:
                prompts.append(self._encoder.encode(request))
            except RefusedPromptError as refusal:
                refused.append(failed_request(request.key, refusal.error, refusal.prompt_tokens))
        return prompts, _errors_only(refused, rows=0) if refused else None

    def _run_next(
        self, waiting: deque[EncodedPrompt], should_stop: Callable[[], bool]
    ) -> tuple[Window, bool]:
        """Run the next micro-batch, in halves if memory runs out.

        A row that fails even alone says nothing about the others, so the size
        goes back to what it was.
        """
        rows_before = self._rows
        retries = 0
        while True:
            batch = take_micro_batch(
                waiting, rows=self._rows, shared_context_tokens=self._shared_context_tokens
            )
            outcome = self._attempt(batch, should_stop)
            if outcome is not None:
                micro_batch, was_interrupted = outcome
                return replace(micro_batch, out_of_memory_retries=retries), was_interrupted
            if len(batch) == 1:
                self._rows = rows_before
                error = out_of_memory(batch[0], self._model.device)
                refused = failed(batch[0], error)
                return replace(
                    _errors_only([refused], rows=1), out_of_memory_retries=retries
                ), False
            waiting.extendleft(reversed(batch))
            self._rows = (len(batch) + 1) // 2
            retries += 1

    def _attempt(
        self, batch: Sequence[EncodedPrompt], should_stop: Callable[[], bool]
    ) -> tuple[Window, bool] | None:
        """The batch's outcome, or None if memory ran out."""
        if self._batches is None:
            raise RuntimeError("the engine is closed")
        try:
            return self._batches.generate(batch, should_stop=should_stop)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here are the failed call's frames gone, and its tensors with them.
        free_unused_memory()
        return None


def _errors_only(results: Sequence[GenerationResult], *, rows: int) -> Window:
    return Window(
        results=tuple(results),
        rows=rows,
        prompt_tokens=sum(result.prompt_tokens for result in results),
        completion_tokens=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
    )
