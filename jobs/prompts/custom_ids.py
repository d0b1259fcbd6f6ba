"""Which custom_ids of a file stand on more than one line, found on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.errors import TgpError

INSERT_ROWS = 4096


class TemporaryRoomError(TgpError):
    """There is no room for temporary files: free some, or set TMPDIR to another folder."""

    code = "no_temporary_room"


class CustomIds:
    """The custom_ids of one file in a temporary database.

    A dict would hold every one of them in memory. They are sorted once at the
    end, which is several times as fast as keeping an index while they come in.
    """

    def __init__(self) -> None:
        # An empty name is a private database in a temporary file, which SQLite
        # deletes itself and keeps in memory only up to its cache size.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute("CREATE TABLE uses (custom_id TEXT NOT NULL, line INTEGER NOT NULL)")
        self._database.execute("BEGIN")
        self._pending: list[tuple[str, int]] = []

    def add(self, custom_id: str, line: int) -> None:
        self._pending.append((custom_id, line))
        if len(self._pending) >= INSERT_ROWS:
            self._insert()

    def duplicate_count(self) -> int:
        """Uses beyond each custom_id's first."""
        self._insert()
        with _disk_may_be_full():
            self._database.execute("CREATE INDEX IF NOT EXISTS by_id ON uses (custom_id, line)")
        rows = self._database.execute(
            "SELECT coalesce(sum(times - 1), 0) FROM"
            " (SELECT count(*) AS times FROM uses GROUP BY custom_id)"
        )
        return int(rows.fetchone()[0])

    def duplicates(self, limit: int) -> Iterator[tuple[str, int, int]]:
        """The first duplicates by line: the custom_id, the line, its first line."""
        yield from self._database.execute(
            "SELECT uses.custom_id, uses.line, first.line FROM"
            " (SELECT custom_id, min(line) AS line FROM uses"
            "  GROUP BY custom_id HAVING count(*) > 1) AS first"
            " JOIN uses ON uses.custom_id = first.custom_id AND uses.line > first.line"
            " ORDER BY uses.line LIMIT ?",
            (limit,),
        )

    def close(self) -> None:
        self._database.close()

    def _insert(self) -> None:
        with _disk_may_be_full():
            self._database.executemany("INSERT INTO uses VALUES (?, ?)", self._pending)
        self._pending.clear()


@contextmanager
def _disk_may_be_full() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise TemporaryRoomError from error
