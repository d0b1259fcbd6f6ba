"""What an engine is: requests in, finished micro-batches out.

Nothing here knows jobs, Redis or databases, and nothing imports torch, so a
caller may hold requests and results without loading a model.
"""

from __future__ import annotations

from collections import deque
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
    # What ends a completion; None asks the checkpoint, empty lets only the length end it.
    eos_token_ids: tuple[int, ...] | None = None
    # How many of the likeliest tokens are told of at each step; None tells of none.
    logprobs: int | None = None
    # Whether the text starts with the prompt's.
    echo: bool = False


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
class TokenLogprobs:
    """A generated token and the likeliest ones in its place.

    Natural logarithms of the probabilities of the model's own logits, before
    temperature, penalties and the like.

    Attributes:
        token_id: Id of the token that was taken.
        text: This token decoded on its own.
        logprob: Log-probability of this token.
        top: Token id, text and log-probability of the likeliest tokens, the likeliest first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, kw_only=True)
class GenerationResult:
    """One request's outcome: text and finish_reason, or error.

    Token counts include special tokens; the end-of-sequence token counts as a
    completion token.

    Attributes:
        key: Key of the request.
        text: The completion, after the prompt if that was asked for.
        finish_reason: "stop", "length", or None with an error.
        prompt_tokens: Number of tokens of the prompt.
        completion_tokens: Number of generated tokens.
        waiting_seconds: Seconds from being taken off the feed to the start of prefill.
        prefill_seconds: Seconds from there to the first token; with waiting_seconds,
            the time to first token.
        decode_seconds: Seconds from the first token to the last.
        logprobs: Log-probabilities of each generated token, if they were asked for.
        error: Reason that there is no text.
    """

    key: int
    text: str | None
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    waiting_seconds: float = 0.0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: RequestError | None = None


@dataclass(frozen=True, kw_only=True)
class Window:
    """What was finished in one window of an engine's work, and what that took.

    Rows come and go within a window, so those that are finished in it may have
    begun in an earlier one.

    Attributes:
        results: A result for each finished row, in no promised order.
        rows: Largest number of rows that were decoded together; 0 for results that
            needed no generation.
        prompt_tokens: Prompt tokens of the finished rows, without padding.
        completion_tokens: New tokens of the finished rows.
        prefill_seconds: Seconds of the window that were spent on prompts.
        decode_seconds: Seconds of the window that were spent on all else.
        out_of_memory_retries: Number of times that memory ran out in the window.
        steps: Number of decode steps in the window.
        row_steps: Rows in the batch, summed over those steps.
        row_capacity: Number of rows that memory has room for.
        streamed_bytes: Bytes of weights that were copied or read for the window's steps.
        link_wait_seconds: Seconds spent waiting for streamed weights.
        compute_seconds: Rest of the seconds in the model.
    """

    results: tuple[GenerationResult, ...]
    rows: int
    prompt_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    out_of_memory_retries: int = 0
    steps: int = 0
    row_steps: int = 0
    row_capacity: int = 0
    streamed_bytes: int = 0
    link_wait_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LoadProgress:
    """How far a load is; done and total are in the unit named (bytes, tensors)."""

    # "download" | "prepare" | "waiting" | "verify" | "load" | "weights" | "ready"
    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What was loaded, for the log and the worker's row."""

    alias: str
    device: str
    architecture: str
    parameter_count: int
    weight_bytes: int
    load_seconds: float
    context_tokens: int | None
    compute_mode: str  # "llm_int8" | "w8a16" | "null"
    # Of the weights: in RAM and on disk, from where each pass fetches them.
    ram_bytes: int = 0
    disk_bytes: int = 0
    # Upper bound on rows that are decoded together, and the planned rate; None without a plan.
    row_capacity: int | None = None
    predicted_tokens_per_second: float | None = None


class ModelLoadError(Exception):
    """The model cannot be loaded; the message says what is wrong and what to do."""


class LoadInterruptedError(Exception):
    """should_stop said stop while the model was loading."""


class RequestFeed(Protocol):
    """Where an engine takes requests from, as it gets room for them."""

    def take(self, at_most: int) -> Sequence[GenerationRequest]:
        """The next requests, never more than that; none if there are none now.

        An engine asks again as rows finish, and ends when none are left in it
        and it is given none.
        """
        ...

    def is_wanted(self, key: int) -> bool:
        """Whether a request that was taken still has to be generated.

        Asked before each step; a row that is not wanted is dropped and has no
        result.
        """
        ...


class RequestList:
    """A feed of requests that are all there from the start."""

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        self._waiting = deque(requests)

    def take(self, at_most: int) -> Sequence[GenerationRequest]:
        return [self._waiting.popleft() for _ in range(min(at_most, len(self._waiting)))]

    def is_wanted(self, key: int) -> bool:
        return True


class Engine(Protocol):
    """A loaded model that turns requests into results."""

    @property
    def model(self) -> ModelDescription: ...

    def generate(self, feed: RequestFeed, *, should_stop: Callable[[], bool]) -> Iterator[Window]:
        """Yield what is finished, window by window, until the feed is empty.

        Every request that is taken comes back in exactly one micro-batch, with
        a completion or an error, unless the feed does not want it any more or
        should_stop() turned true: it is asked before each decode step, and
        then what is finished is yielded, the iterator ends, and unfinished
        requests are simply not among the results.
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
