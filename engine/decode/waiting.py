"""Prompts that were taken off the feed and have no row yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from engine.cache.budget import Extent
from engine.decode.admission import Reservation
from engine.decode.choice import TokenChoice
from engine.decode.prompts import EncodedPrompt, PromptEncoder, RefusedPromptError
from engine.decode.row import Row, RowTimes, failed_request
from engine.decode.special_tokens import SpecialTokens
from engine.decode.stopping import RowProgress, StopStringWatch
from engine.interface import GenerationResult, RequestFeed


@dataclass(kw_only=True, eq=False)
class Waiting:
    """One of them.

    Attributes:
        prompt: Its tokens.
        reservation: What its row would take.
        times: So far.
        states: For an encoder-decoder the encoder's output [S, W], once there.
    """

    prompt: EncodedPrompt
    reservation: Reservation
    times: RowTimes
    states: Any = None


class WaitingPrompts:
    """A look ahead into a feed, oldest first."""

    def __init__(
        self,
        feed: RequestFeed,
        encoder: PromptEncoder,
        reservation_of: Callable[[EncodedPrompt], Reservation],
        look_ahead: int,
    ) -> None:
        self.prompts: list[Waiting] = []
        self._feed = feed
        self._encoder = encoder
        self._reservation_of = reservation_of
        self._look_ahead = look_ahead
        self._may_have_more = True

    def take(self, *, rows_left: bool) -> list[GenerationResult]:
        """Fill up from the feed; what is returned cannot be run.

        Args:
            rows_left: Whether rows have left since it was last empty, when it
                is asked again.
        """
        self._may_have_more |= rows_left
        refused: list[GenerationResult] = []
        while self._may_have_more and len(self.prompts) < self._look_ahead:
            requests = self._feed.take(self._look_ahead - len(self.prompts))
            self._may_have_more = bool(requests)
            now = time.perf_counter()
            for request in requests:
                try:
                    prompt = self._encoder.encode(request)
                except RefusedPromptError as refusal:
                    refused.append(
                        failed_request(request.key, refusal.error, refusal.prompt_tokens)
                    )
                else:
                    self._append(prompt, RowTimes(taken=now))
        return refused

    def put_back(self, prompt: EncodedPrompt, taken: float) -> None:
        """Have one begin anew, before all others."""
        self._append(prompt, RowTimes(taken=taken), place=0)

    def remove(self, some: Iterable[Waiting]) -> None:
        """These have a row now, or are not wanted."""
        removed = {id(each) for each in some}
        self.prompts = [each for each in self.prompts if id(each) not in removed]

    def drop_unwanted(self) -> None:
        self.prompts = [
            each for each in self.prompts if self._feed.is_wanted(each.prompt.request.key)
        ]

    def _append(self, prompt: EncodedPrompt, times: RowTimes, place: int | None = None) -> None:
        waiting = Waiting(prompt=prompt, reservation=self._reservation_of(prompt), times=times)
        self.prompts.insert(len(self.prompts) if place is None else place, waiting)


@dataclass(frozen=True, kw_only=True)
class RowMaker:
    """Makes rows of one model's prompts, and results of its rows.

    Attributes:
        tokenizer: Decodes completions.
        special_tokens: The checkpoint's.
        is_encoder_decoder: Whether the prompt is the encoder's.
        part_tokens: A longer prompt is read in parts.
        part_token_bytes: Of a token of such a prompt, in a cache of its own.
    """

    tokenizer: Any
    special_tokens: SpecialTokens
    is_encoder_decoder: bool
    part_tokens: int
    part_token_bytes: int

    @property
    def start_token(self) -> int:
        """What an encoder-decoder's decoder reads first."""
        start = self.special_tokens.decoder_start
        return self.special_tokens.pad if start is None else start

    def reservation(self, prompt: EncodedPrompt) -> Reservation:
        """What the prompt's row takes at its longest."""
        tokens = len(prompt.token_ids)
        if self.is_encoder_decoder:
            return Reservation(extent=Extent(1 + prompt.max_new_tokens, tokens))
        return Reservation(
            extent=Extent(tokens + prompt.max_new_tokens),
            held_bytes=tokens * self.part_token_bytes if tokens > self.part_tokens else 0,
        )

    def row(self, waiting: Waiting) -> Row:
        """A row without tokens yet."""
        prompt = waiting.prompt
        parameters = prompt.request.parameters
        stated = parameters.eos_token_ids
        eos = frozenset(self.special_tokens.eos if stated is None else stated)
        start = (self.start_token,) if self.is_encoder_decoder else prompt.token_ids
        return Row(
            prompt=prompt,
            decoder_tokens=start,
            reservation=waiting.reservation,
            progress=RowProgress(
                max_new_tokens=prompt.max_new_tokens,
                watch=StopStringWatch(self.tokenizer, parameters.stop),
            ),
            choice=TokenChoice.of(parameters, eos, start),
            eos=eos,
            times=waiting.times,
            states=waiting.states,
        )

    def result(self, row: Row) -> GenerationResult:
        return row.result(self.tokenizer)
