"""The engine: our own decode loop on stock modules of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from transformers import GenerationConfig

from engine.cache.budget import CacheBudget
from engine.cache.format import CacheDtype, FloatFormat, cache_format
from engine.cache.memory import CacheMemory
from engine.cache.shape import cache_shape_of
from engine.decode.admission import Admission, RowLimit
from engine.decode.batch import Batch
from engine.decode.forward import ForwardCalls
from engine.decode.loop import DecodeLoop
from engine.decode.out_of_memory import is_out_of_memory
from engine.decode.prompts import RowMaker
from engine.decode.special_tokens import special_tokens_of
from engine.decode.waiting import WaitingRows
from engine.decode.window import WindowCounter
from engine.device import free_unused_memory, plain_dtype
from engine.interface import ModelDescription, RequestFeed, Window
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits
from engine.quiet import quiet_libraries

# Prompts that are looked at together, so that there is a choice of whom to admit.
LEAST_LOOK_AHEAD = 64
# For each row there may be, how many may be admitted before one that waits longer.
PATIENCE = 4


class DecodeEngine:
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
        row_bytes: int = 0,
    ) -> None:
        """Wrap a loaded model.

        Args:
            loaded: The model.
            description: What is told of it.
            limits: The memory there is for rows.
            cache_dtype: What its KV cache is kept as.
            row_bytes: Bytes of a row's states, for a model that has some.

        Raises:
            ValueError: The limits leave no row.
            UnsupportedLayersError: The model's layers cache something else.
        """
        self._model = description
        self._limits = limits
        self._row_limit = RowLimit(limits.rows)
        self._format = cache_format(cache_dtype)
        self._loaded: Int8Model | None = loaded
        self._is_encoder_decoder = bool(loaded.model.config.is_encoder_decoder)
        special = special_tokens_of(loaded.model, loaded.tokenizer)
        # What a checkpoint says of generation must not leak into a call.
        loaded.model.generation_config = GenerationConfig()
        self._shape = cache_shape_of(loaded.model.config)
        dtype = plain_dtype(loaded.device)
        token_bytes = self._shape.token_bytes(self._format, dtype)
        self._budget = CacheBudget(
            bytes=limits.cache_bytes,
            row_bytes=row_bytes,
            token_bytes=token_bytes,
            source_token_bytes=token_bytes if self._is_encoder_decoder else 0,
        )
        self._maker = RowMaker(
            tokenizer=loaded.tokenizer,
            special_tokens=special,
            is_encoder_decoder=self._is_encoder_decoder,
            context_tokens=description.context_tokens,
            vocabulary_rows=loaded.model.get_input_embeddings().weight.shape[0],
            chunk_tokens=None if self._shape.has_states else limits.prefill_tokens,
            chunk_token_bytes=self._shape.token_bytes(FloatFormat(), dtype),
        )
        self._running: DecodeLoop | None = None

    @property
    def model(self) -> ModelDescription:
        return self._model

    @property
    def row_capacity(self) -> int:
        """Upper bound on rows that are decoded together."""
        return self._row_limit.rows

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache, as allocated now."""
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
            loop.batch.clear()
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
        special = self._maker.special_tokens
        calls = ForwardCalls(loaded.model, self._shape, loaded.device, special.pad)
        batch = Batch(
            calls,
            self._memory(loaded),
            self._memory(loaded) if self._is_encoder_decoder else None,
            self._budget,
            special.start,
        )
        look_ahead = max(LEAST_LOOK_AHEAD, 2 * self._limits.rows, self._limits.encoded_rows)
        return DecodeLoop(
            calls=calls,
            passes=loaded.passes,
            batch=batch,
            waiting=WaitingRows(feed, self._maker, look_ahead),
            feed=feed,
            limits=self._limits,
            row_limit=self._row_limit,
            admission=Admission(budget=self._budget, patience=PATIENCE * self._limits.rows),
            window=WindowCounter(passes=loaded.passes),
            tokenizer=loaded.tokenizer,
            is_encoder_decoder=self._is_encoder_decoder,
            device=self._model.device,
        )

    def _memory(self, loaded: Int8Model) -> CacheMemory:
        return CacheMemory(self._shape, self._format, loaded.device)
