"""How many rows may be in flight, after memory ran out as before."""

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
        """So many were too many; rounded up, so that a number that fits is not passed over."""
        self.rows = min(self.rows, (in_flight + 1) // 2)

    def halve_encoding(self, prompts: int) -> None:
        """So many were too many for one pass of the encoder."""
        self.encoded_rows = (prompts + 1) // 2

    def worked(self) -> None:
        """Rows were finished at this number."""
        self._before = self.rows

    def restore(self) -> None:
        """One failed alone."""
        self.rows = self._before


@dataclass(kw_only=True)
class Reservation:
    """What a waiting prompt would take.

    Attributes:
        extent: Of its row, at its longest.
        held_bytes: Beside the cache, while its prompt is read in parts.
        passed_over: Rows that came after it and were admitted before it.
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
        budget: Of the cache.
        patience: How many rows may be admitted before one that waits longer;
            those of one step more, at most.
    """

    budget: CacheBudget
    patience: int

    def choose(
        self, waiting: Sequence[Reservation], in_flight: InFlight, *, most_rows: int
    ) -> list[int]:
        """Who is admitted now, as places in waiting; keeps count of who is passed over.

        Args:
            waiting: The longest waiting first.
            in_flight: Who is there already.
            most_rows: That may be in flight.
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
