"""How many rows may be in flight, and which of the waiting rows join the batch next.

Rows share one rectangle of memory, as wide as its widest row may become. So
the longest go first: they are beside rows of like length then, those that take
the most steps do not begin last, and what does not fit shows at once. A row that
has been passed over often enough is waited for, so that every row is admitted in
the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.cache.budget import CacheBudget, Extent

_UNLIMITED = 2**31


class RowLimit:
    """Starts at what the plan says, and is halved when memory runs out.

    The number that worked is kept. A row that fails even alone says nothing
    about the others, so the limit goes back to what it was.
    """

    def __init__(self, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows is {rows} and must be at least 1")
        self.rows = rows
        self._before = rows
        # Prompts that an encoder takes at once; as many as it likes at first.
        self.encoded_rows = _UNLIMITED
        # Whether a pass of the encoder has to wait until no row is in the batch.
        self.encodes_alone = False

    def halve(self, in_flight: int) -> None:
        """Allow half of the rows that did not fit, rounded up, so as not to miss a number."""
        self.rows = min(self.rows, (in_flight + 1) // 2)

    def halve_encoding(self, prompts: int) -> None:
        """Allow one pass of the encoder half of the prompts that did not fit."""
        self.encoded_rows = (prompts + 1) // 2

    def worked(self) -> None:
        """Note that rows were finished at this limit."""
        self._before = self.rows

    def restore(self) -> None:
        """Go back to the last limit that worked, after a row that does not fit even alone."""
        self.rows = self._before


@dataclass(kw_only=True)
class Reservation:
    """What a waiting prompt would take.

    Attributes:
        extent: Columns that the row takes at its longest.
        held_bytes: Bytes beside the cache while its prompt is read in chunks.
        passed_over: Number of rows that came after it and were admitted before it.
    """

    extent: Extent
    held_bytes: int = 0
    passed_over: int = 0


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """The rows that have been admitted and are not finished."""

    rows: int = 0
    widest: Extent = field(default_factory=lambda: Extent(0))
    held_bytes: int = 0

    def joined_by(self, reservation: Reservation) -> InFlight:
        return InFlight(
            rows=self.rows + 1,
            widest=self.widest.over(reservation.extent),
            held_bytes=self.held_bytes + reservation.held_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The rules.

    Attributes:
        budget: Upper bound on the cache's bytes.
        patience: Number of rows that may be admitted before one that waits longer; rows
            of the same step may exceed it.
    """

    budget: CacheBudget
    patience: int

    def choose(
        self, waiting: Sequence[Reservation], in_flight: InFlight, *, most_rows: int
    ) -> list[int]:
        """Which rows are admitted now, as places in waiting; counts those that are passed over.

        Args:
            waiting: Reservations of the waiting rows, the longest waiting first.
            in_flight: Rows that are admitted already.
            most_rows: Upper bound on rows in flight.
        """
        chosen: list[int] = []
        for place in self._order(waiting):
            reservation = waiting[place]
            joined = in_flight.joined_by(reservation)
            is_alone = joined.rows == 1
            if joined.rows <= most_rows and (is_alone or self._fits(joined)):
                in_flight = joined
                chosen.append(place)
            elif joined.rows > most_rows or reservation.passed_over >= self.patience:
                break
        self._count_passed_over(waiting, chosen)
        return chosen

    def _fits(self, in_flight: InFlight) -> bool:
        return self.budget.fits(in_flight.rows, in_flight.widest, in_flight.held_bytes)

    def _order(self, waiting: Sequence[Reservation]) -> list[int]:
        """Those that have been passed over too often, by age; then by length."""
        return sorted(
            range(len(waiting)),
            key=lambda place: (
                (0, Extent(0))
                if waiting[place].passed_over >= self.patience
                else (
                    1,
                    Extent(-waiting[place].extent.tokens, -waiting[place].extent.source_tokens),
                )
            ),
        )

    def _count_passed_over(self, waiting: Sequence[Reservation], chosen: Sequence[int]) -> None:
        admitted = set(chosen)
        later = 0
        for place in range(len(waiting) - 1, -1, -1):
            if place in admitted:
                later += 1
            else:
                waiting[place].passed_over += later
