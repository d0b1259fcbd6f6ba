"""Prompts that were taken off the feed and have no row yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from worker.engine.admission import Claim
from worker.engine.engine import GenerationResult, RequestFeed
from worker.engine.generated_row import RowTimes, failed_request
from worker.engine.prompt_encoding import EncodedPrompt, PromptEncoder, RefusedPromptError


@dataclass(kw_only=True, eq=False)
class Waiting:
    """One of them.

    Attributes:
        prompt: Its tokens.
        claim: What its row would take.
        times: So far.
        states: For an encoder-decoder the encoder's output [S, W], once there.
    """

    prompt: EncodedPrompt
    claim: Claim
    times: RowTimes
    states: Any = None


class WaitingPrompts:
    """A look ahead into a feed, oldest first."""

    def __init__(
        self,
        feed: RequestFeed,
        encoder: PromptEncoder,
        claim_of: Callable[[EncodedPrompt], Claim],
        look_ahead: int,
    ) -> None:
        self.prompts: list[Waiting] = []
        self._feed = feed
        self._encoder = encoder
        self._claim_of = claim_of
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
        waiting = Waiting(prompt=prompt, claim=self._claim_of(prompt), times=times)
        self.prompts.insert(len(self.prompts) if place is None else place, waiting)
