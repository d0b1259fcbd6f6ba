"""One row from its prompt to its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.cache.budget import Extent
from engine.decode.admission import Reservation
from engine.decode.choice import ChosenToken, TokenChoice
from engine.decode.prompts import EncodedPrompt
from engine.decode.stopping import RowProgress, cut_at_stop, decode_text
from engine.interface import GenerationResult, RequestError, TokenLogprobs


@dataclass(kw_only=True)
class RowTimes:
    """When things happened to a row, by time.perf_counter(); None if not yet."""

    taken: float
    prefill_started: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(kw_only=True, eq=False)
class Row:
    """A prompt that was admitted.

    Attributes:
        prompt: With its request.
        decoder_tokens: What its decoder reads first: the prompt, or for an
            encoder-decoder the start token.
        reservation: What it may come to take.
        progress: Its new tokens.
        choice: How they are chosen.
        eos: What ends it.
        times: For its result.
        cached_tokens: Of its decoder's, those that are in the cache.
        states: The encoder's output [S, W] until it is in the cross cache.
    """

    prompt: EncodedPrompt
    decoder_tokens: tuple[int, ...]
    reservation: Reservation
    progress: RowProgress
    choice: TokenChoice
    eos: frozenset[int]
    times: RowTimes
    cached_tokens: int = 0
    states: Any = None
    told: list[ChosenToken] = field(default_factory=list)

    @property
    def key(self) -> int:
        return self.prompt.request.key

    @property
    def extent(self) -> Extent:
        """At its longest, in the cache."""
        return self.reservation.extent

    @property
    def prefill_tokens(self) -> int:
        """That go through the model before its first new one."""
        return max(len(self.decoder_tokens), self.extent.source_tokens)

    @property
    def is_finished(self) -> bool:
        return self.progress.finish_reason is not None

    def append(self, chosen: ChosenToken, now: float) -> None:
        """Take the next token."""
        self.progress.append(chosen.token_id, self.eos)
        self.choice.seen.append(chosen.token_id)
        self.times.first_token = self.times.first_token or now
        self.times.last_token = now
        if chosen.logprob is not None:
            self.told.append(chosen)

    def result(self, tokenizer: Any) -> GenerationResult:
        """What is told of a finished row."""
        parameters = self.prompt.request.parameters
        token_ids = self.progress.token_ids
        # An end token that the tokenizer does not know as special is no text either.
        spoken = token_ids[:-1] if token_ids[-1] in self.eos else token_ids
        text, was_cut = cut_at_stop(decode_text(tokenizer, spoken), parameters.stop)
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
            finish_reason="stop" if was_cut else self.progress.finish_reason,
            prompt_tokens=len(self.prompt.token_ids),
            completion_tokens=len(token_ids),
            waiting_seconds=started - times.taken,
            prefill_seconds=first - started,
            decode_seconds=last - first,
            logprobs=self._logprobs(tokenizer),
        )

    def _prompt_text(self, tokenizer: Any) -> str:
        prompt = self.prompt.request.prompt
        # Of a chat, what its template made of it.
        return prompt if isinstance(prompt, str) else decode_text(tokenizer, self.prompt.token_ids)

    def _logprobs(self, tokenizer: Any) -> tuple[TokenLogprobs, ...] | None:
        if self.prompt.request.parameters.logprobs is None:
            return None
        return tuple(_told(tokenizer, each) for each in self.told)


def failed(prompt: EncodedPrompt, error: RequestError) -> GenerationResult:
    """The result of a prompt that has none."""
    return failed_request(prompt.request.key, error, len(prompt.token_ids))


def failed_request(key: int, error: RequestError, prompt_tokens: int) -> GenerationResult:
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
