"""The engine with our own decode loop, on stock modules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from transformers import GenerationConfig

from engine.cache.budget import CacheBudget
from engine.cache.format import CacheDtype, FloatFormat, cache_format
from engine.cache.memory import CacheMemory, cache_shape_of
from engine.decode.admission import Admission, RowLimit
from engine.decode.batch import Batch
from engine.decode.forward import ForwardCalls
from engine.decode.loop import DecodeLoop
from engine.decode.out_of_memory import is_out_of_memory
from engine.decode.prompts import PromptEncoder
from engine.decode.special_tokens import special_tokens_of
from engine.decode.waiting import RowMaker, WaitingPrompts
from engine.decode.window import WindowCounter
from engine.device import free_unused_memory, plain_dtype
from engine.interface import ModelDescription, RequestFeed, Window
from engine.layout.families import family_of
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits
from engine.quiet import quiet_libraries

# Prompts that are looked at together, so that there is a choice of whom to admit.
LEAST_LOOK_AHEAD = 64


# For each row there may be, how many may be admitted before one that waits longer.
PATIENCE = 4


class ContinuousEngine:
    """An Engine over one loaded model; see DecodeLoop for how it generates.

    The number of rows starts at the limits' and is halved when memory runs
    out; the number that worked is kept for the life of the engine.
    """

    def __init__(
        self,
        loaded: Int8Model,
        description: ModelDescription,
        *,
        limits: BatchLimits,
        cache_dtype: CacheDtype = "float",
    ) -> None:
        """Wrap a loaded model.

        Args:
            loaded: One that supports_continuous().
            description: What is told of it.
            limits: The memory there is for rows.
            cache_dtype: What its KV cache is kept as.

        Raises:
            ValueError: The limits leave no row.
        """
        self._model = description
        self._limits = limits
        self._row_limit = RowLimit(limits.rows)
        self._format = cache_format(cache_dtype)
        self._loaded: Int8Model | None = loaded
        self._family = family_of(loaded.model.config)
        special = special_tokens_of(loaded.model, loaded.tokenizer)
        # What a checkpoint says of generation must not leak into a call.
        loaded.model.generation_config = GenerationConfig()
        bos = loaded.tokenizer.bos_token_id
        self._encoder = PromptEncoder(
            tokenizer=loaded.tokenizer,
            family=self._family,
            context_tokens=description.context_tokens,
            vocabulary_rows=loaded.model.get_input_embeddings().weight.shape[0],
            blank_token_ids=(special.eos if bos is None else (bos,))[:1],
        )
        self._shape = cache_shape_of(loaded.model.config)
        dtype = plain_dtype(loaded.device)
        token_bytes = self._shape.token_bytes(self._format, dtype)
        is_encoder_decoder = self._family.is_encoder_decoder
        self._budget = CacheBudget(
            bytes=limits.cache_bytes,
            token_bytes=token_bytes,
            source_token_bytes=token_bytes if is_encoder_decoder else 0,
        )
        self._rows = RowMaker(
            tokenizer=loaded.tokenizer,
            special_tokens=special,
            is_encoder_decoder=is_encoder_decoder,
            part_tokens=limits.prefill_tokens,
            part_token_bytes=self._shape.token_bytes(FloatFormat(), dtype),
        )
        self._running: DecodeLoop | None = None

    @property
    def model(self) -> ModelDescription:
        return self._model

    @property
    def row_capacity(self) -> int:
        """The most rows that are alive at once."""
        return self._row_limit.rows

    @property
    def cache_bytes(self) -> int:
        """Of the KV cache, as allocated now."""
        return self._running.cache_bytes if self._running is not None else 0

    def generate(self, feed: RequestFeed, *, should_stop: Callable[[], bool]) -> Iterator[Window]:
        """Yield what is finished, window by window; see Engine."""
        if self._loaded is None:
            raise RuntimeError("the engine is closed")
        loop = self._running = self._loop(self._loaded, feed)
        try:
            is_working = True
            while is_working:
                is_working = self._run_window(loop, should_stop)
                if loop.window.results:
                    yield self._close_window(loop)
        finally:
            loop.alive.clear()
            self._running = None

    def close(self) -> None:
        """Free everything the model holds, on every device."""
        if self._loaded is not None:
            self._loaded.free()
        self._loaded = self._running = None
        free_unused_memory()

    def _run_window(self, loop: DecodeLoop, should_stop: Callable[[], bool]) -> bool:
        """Steps until there is enough to tell; whether there is more to do."""
        # Not around each step: Python's logging forgets what it knows at either end.
        with quiet_libraries():
            while not loop.window.is_due(self.row_capacity):
                if should_stop() or not self._step(loop):
                    return False
        return True

    def _step(self, loop: DecodeLoop) -> bool:
        """One step, or what makes the next one fit."""
        try:
            return loop.step()
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here are the failed step's frames gone, and its tensors with them.
        loop.recover()
        free_unused_memory()
        return True

    def _close_window(self, loop: DecodeLoop) -> Window:
        closed = loop.window.close(self.row_capacity)
        loop.window = WindowCounter(passes=loop.passes)
        return closed

    def _loop(self, loaded: Int8Model, feed: RequestFeed) -> DecodeLoop:
        calls = ForwardCalls(
            loaded.model, self._family, loaded.device, self._rows.special_tokens.pad
        )
        is_encoder_decoder = self._family.is_encoder_decoder
        alive = Batch(
            calls,
            self._store(loaded),
            self._store(loaded) if is_encoder_decoder else None,
            self._budget,
            self._rows.start_token,
        )
        look_ahead = max(LEAST_LOOK_AHEAD, 2 * self._limits.rows, self._limits.encoded_rows)
        return DecodeLoop(
            calls=calls,
            passes=loaded.passes,
            alive=alive,
            waiting=WaitingPrompts(feed, self._encoder, self._rows.reservation, look_ahead),
            rows=self._rows,
            feed=feed,
            limits=self._limits,
            row_limit=self._row_limit,
            admission=Admission(budget=self._budget, patience=PATIENCE * self._limits.rows),
            window=WindowCounter(passes=loaded.passes),
            device=self._model.device,
        )

    def _store(self, loaded: Int8Model) -> CacheMemory:
        return CacheMemory(self._shape, self._format, loaded.device)
