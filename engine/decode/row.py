"""One prompt from the feed to its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from engine.decode.admission import Reservation
from engine.decode.stopping import StopStringWatch, cut_at_stop, decode_text
from engine.interface import GenerationRequest, GenerationResult, RequestError, TokenLogprobs

FinishReason = Literal["stop", "length"]

# torch.Generator takes 64 bits; a negative seed means its two's complement.
_SEED_MASK = 2**64 - 1

_NOT_FINITE = RequestError(
    code="not_finite",
    message="the model's numbers overflowed, so no token can be chosen; use the compute mode "
    "w8a16 (--compute-mode w8a16), or a model that does not overflow in half precision",
)


@dataclass(frozen=True, kw_only=True)
class ChosenToken:
    """A token; logprob and top (token id, logprob) only if they were asked for."""

    token_id: int
    logprob: float | None = None
    # Whether the logits that it was chosen from are numbers.
    is_finite: bool = True
    top: tuple[tuple[int, float], ...] = ()


@dataclass(kw_only=True)
class RowTimes:
    """When things happened to a row, by time.perf_counter(); None if not yet."""

    taken: float
    prefill_started: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(kw_only=True, eq=False)
class Row:
    """A prompt with its tokens, from being taken off the feed to its result.

    Attributes:
        request: What was asked for.
        source_tokens: Token ids that an encoder reads; empty for a causal model.
        tokens: Token ids that the decoder reads, with new ones at the end.
        given_tokens: Number of tokens before the first new one: the prompt, or
            an encoder-decoder's start token.
        max_new_tokens: Upper bound on new tokens.
        end_tokens: Token ids that end the row.
        forced_first: First new token, whatever the model says; None to choose it.
        reservation: Memory that the row takes at its longest.
        watch: Finds stop strings in the new tokens.
        times: When things happened to it.
        generator: Source of random numbers; None for a greedy row.
        cached_tokens: Number of tokens whose keys and values are in the cache.
        states: The encoder's output [S, W] until it is in the cross cache.
        told: The chosen tokens, if their log-probabilities were asked for.
        is_finite: Whether all logits so far were numbers; a row ends where they are not.
        finish_reason: Why the row is finished; None while it is not.
    """

    request: GenerationRequest
    source_tokens: tuple[int, ...] = ()
    tokens: list[int]
    given_tokens: int
    max_new_tokens: int
    end_tokens: frozenset[int]
    reservation: Reservation
    watch: StopStringWatch
    times: RowTimes
    forced_first: int | None = None
    generator: torch.Generator | None = None
    cached_tokens: int = 0
    states: Any = None
    told: list[ChosenToken] = field(default_factory=list)
    is_finite: bool = True
    finish_reason: FinishReason | None = None

    @property
    def key(self) -> int:
        return self.request.key

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.given_tokens :]

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.source_tokens) or self.given_tokens

    @property
    def unread_tokens(self) -> int:
        """Number of tokens that go through the model before the next new one."""
        return max(len(self.tokens), len(self.source_tokens))

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def holds_back_end(self) -> bool:
        """Whether the next token may not end the row."""
        so_far = len(self.tokens) - self.given_tokens
        return bool(self.end_tokens) and so_far < self.request.parameters.min_new_tokens

    @property
    def forced_token(self) -> int | None:
        """The next token if the checkpoint's settings fix it."""
        return None if len(self.tokens) > self.given_tokens else self.forced_first

    @property
    def is_plain(self) -> bool:
        """Whether the next token is just the likeliest."""
        return (
            self.generator is None
            and self.request.parameters.repetition_penalty == 1.0
            and not self.holds_back_end
            and self.forced_token is None
        )

    def append(self, chosen: ChosenToken, now: float) -> None:
        """Take the next token and see whether it is the last."""
        self.tokens.append(chosen.token_id)
        self.times.first_token = self.times.first_token or now
        self.times.last_token = now
        if chosen.logprob is not None:
            self.told.append(chosen)
        if not chosen.is_finite:
            self.is_finite, self.finish_reason = False, "stop"
        elif chosen.token_id in self.end_tokens or (
            # Not asked without stop strings: the new tokens would be copied at every step.
            self.request.parameters.stop and self.watch.is_found(self.new_tokens)
        ):
            self.finish_reason = "stop"
        elif len(self.tokens) - self.given_tokens >= self.max_new_tokens:
            self.finish_reason = "length"

    def restart(self) -> None:
        """Begin anew, as if the row had just been taken off the feed."""
        del self.tokens[self.given_tokens :]
        self.told.clear()
        self.watch.restart()
        self.times = RowTimes(taken=self.times.taken)
        self.cached_tokens, self.states, self.finish_reason = 0, None, None
        self.is_finite = True
        if self.generator is not None:
            self.generator = seeded(self.request.parameters.seed)

    def result(self, tokenizer: Any) -> GenerationResult:
        """What is told of a finished row."""
        if not self.is_finite:
            return self.failed(_NOT_FINITE)
        parameters = self.request.parameters
        new_tokens = self.new_tokens
        # An end token that the tokenizer does not know as special is no text either.
        spoken = new_tokens[:-1] if new_tokens[-1] in self.end_tokens else new_tokens
        text, was_cut = cut_at_stop(self.watch.text(spoken), parameters.stop)
        if parameters.echo:
            text = self._prompt_text(tokenizer) + text
        times = self.times
        started, first, last = (
            time or times.taken
            for time in (times.prefill_started, times.first_token, times.last_token)
        )
        return GenerationResult(
            key=self.key,
            text=text,
            finish_reason="stop" if was_cut else self.finish_reason,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=len(new_tokens),
            waiting_seconds=started - times.taken,
            prefill_seconds=first - started,
            decode_seconds=last - first,
            logprobs=self._logprobs(tokenizer),
        )

    def failed(self, error: RequestError) -> GenerationResult:
        """The result of a row that has no text."""
        return failed_request(self.key, error, self.prompt_tokens)

    def _prompt_text(self, tokenizer: Any) -> str:
        prompt = self.request.prompt
        if isinstance(prompt, str):
            return prompt
        # Of a chat, what its template made of it.
        return decode_text(tokenizer, self.source_tokens or self.tokens[: self.given_tokens])

    def _logprobs(self, tokenizer: Any) -> tuple[TokenLogprobs, ...] | None:
        if self.request.parameters.logprobs is None:
            return None
        return tuple(_told(tokenizer, each) for each in self.told)


def seeded(seed: int) -> torch.Generator:
    """A row's own source of random numbers."""
    # On the CPU whatever the model's device, so that a seed means the same
    # stream of numbers on every box.
    return torch.Generator(device="cpu").manual_seed(seed & _SEED_MASK)


def failed_request(key: int, error: RequestError, prompt_tokens: int) -> GenerationResult:
    """The result of a request that has no text."""
    return GenerationResult(
        key=key,
        text=None,
        finish_reason=None,
        prompt_tokens=prompt_tokens,
        completion_tokens=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        error=error,
    )


def _told(tokenizer: Any, chosen: ChosenToken) -> TokenLogprobs:
    return TokenLogprobs(
        token_id=chosen.token_id,
        text=_alone(tokenizer, chosen.token_id),
        logprob=chosen.logprob or 0.0,
        top=tuple((token, _alone(tokenizer, token), value) for token, value in chosen.top),
    )


def _alone(tokenizer: Any, token_id: int) -> str:
    text: str = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    return text
