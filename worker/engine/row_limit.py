"""How many rows may be in flight, after memory ran out as before."""

from __future__ import annotations

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
