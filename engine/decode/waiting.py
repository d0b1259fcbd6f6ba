"""Rows that were taken off the feed and have no place in the batch yet."""

from __future__ import annotations

import time
from collections.abc import Iterable

from engine.decode.prompts import RefusedPromptError, RowMaker
from engine.decode.row import Row, failed_request
from engine.interface import GenerationResult, RequestFeed


class WaitingRows:
    """A look ahead into a feed, oldest first."""

    def __init__(self, feed: RequestFeed, maker: RowMaker, look_ahead: int) -> None:
        self.rows: list[Row] = []
        self._feed = feed
        self._maker = maker
        self._look_ahead = look_ahead
        self._may_have_more = True

    def take(self, *, rows_departed: bool) -> list[GenerationResult]:
        """Fill up from the feed; the results are those of requests that cannot be run.

        Args:
            rows_departed: Whether some row finished since the feed was last
                empty; then it is asked again.
        """
        self._may_have_more |= rows_departed
        refused: list[GenerationResult] = []
        while self._may_have_more and len(self.rows) < self._look_ahead:
            requests = self._feed.take(self._look_ahead - len(self.rows))
            self._may_have_more = bool(requests)
            now = time.perf_counter()
            for request in requests:
                try:
                    self.rows.append(self._maker.row(request, now))
                except RefusedPromptError as refusal:
                    refused.append(
                        failed_request(request.key, refusal.error, refusal.prompt_tokens)
                    )
        return refused

    def put_back(self, row: Row) -> None:
        """Have a row begin anew, before all others."""
        row.restart()
        self.rows.insert(0, row)

    def remove(self, some: Iterable[Row]) -> None:
        """Take out rows that are in the batch now, or have a result."""
        removed = {id(each) for each in some}
        self.rows = [each for each in self.rows if id(each) not in removed]

    def drop_unwanted(self) -> None:
        """Take out rows that the feed does not want any more."""
        self.rows = [each for each in self.rows if self._feed.is_wanted(each.key)]
