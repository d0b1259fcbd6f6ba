"""What an engine is: requests in, finished micro-batches out.

Nothing here knows jobs, Redis or databases, and nothing imports torch, so a
caller may hold requests and results without loading a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from.

    Exactly one of hub_id and folder is set.
    """

    alias: str
    hub_id: str | None = None
    folder: Path | None = None
    revision: str | None = None
    # The longest prompt plus completion, in tokens; None asks the checkpoint.
    context_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class SamplingParameters:
    """How one request is generated; every field is resolved.

    temperature 0 is greedy decoding, top_k 0 and top_p 1 are off.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt; key is the caller's and comes back with the result.

    prompt is the text, or the messages of a chat for the tokenizer's template.
    """

    key: int
    prompt: str | tuple[ChatMessage, ...]
    parameters: SamplingParameters = field(default_factory=SamplingParameters)


@dataclass(frozen=True, kw_only=True)
class RequestError:
    """Why one request has no completion: prompt_too_long, out_of_memory, ..."""

    code: str
    message: str


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """One request's outcome: text and finish_reason, or error.

    Token counts include special tokens; the end-of-sequence token counts as a
    completion token. Seconds are those of the micro-batch the row was in.
    """

    key: int
    text: str | None
    finish_reason: str | None  # "stop" | "length" | None with an error
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    error: RequestError | None = None


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Rows that were generated together and are finished.

    Attributes:
        results: One per row, in no promised order.
        rows: Rows in the batch; 0 for results that needed no generation.
        prompt_tokens: Prompt tokens without padding.
        completion_tokens: Tokens generated.
        prefill_seconds: From the start to the first token's logits.
        decode_seconds: The rest.
        out_of_memory_retries: How often the batch was halved to get here.
    """

    results: tuple[GenerationResult, ...]
    rows: int
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    out_of_memory_retries: int = 0


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """How far a load is; done and total are in the unit named (bytes, tensors)."""

    # "download" | "prepare" | "waiting" | "verify" | "load" | "weights" | "ready"
    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """What was loaded, for the log and the worker's row."""

    alias: str
    device: str
    architecture: str
    parameter_count: int
    weight_bytes: int
    load_seconds: float
    context_tokens: int | None
    compute_mode: str  # "llm_int8" | "null"


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


class LoadInterruptedError(Exception):
    """should_stop said stop while the model was loading."""


class Engine(Protocol):
    """A loaded model that turns requests into results."""

    @property
    def model(self) -> LoadedModel: ...

    def generate(
        self, requests: Sequence[GenerationRequest], *, should_stop: Callable[[], bool]
    ) -> Iterator[MicroBatch]:
        """Yield each micro-batch as soon as its rows are finished.

        Every request comes back in exactly one micro-batch, with a completion
        or an error, unless should_stop() turned true: it is asked before each
        decode step, and then the iterator ends and unfinished requests are
        simply not among the results.
        """
        ...

    def close(self) -> None:
        """Free everything the model holds, on every device."""
        ...


class EngineLoader(Protocol):
    """Makes an engine for a model; the seam where worker code chooses one."""

    def __call__(
        self,
        source: ModelSource,
        *,
        on_progress: Callable[[LoadProgress], None],
        should_stop: Callable[[], bool],
    ) -> Engine:
        """Load the model.

        Raises:
            ModelLoadError: It cannot be loaded.
            LoadInterruptedError: should_stop() turned true on the way.
        """
        ...
