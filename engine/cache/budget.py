"""The bytes of a KV cache whose rows share one right edge, counted before they are taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

# Columns beside those that rows need, so that the cache is not moved at every
# step: as many as this where there is memory for them, and else this share.
SPARE_COLUMNS = 32


SPARE_SHARE = 32


def spare_columns(tokens: int) -> int:
    """The fewest spare columns for rows of this width."""
    return max(1, min(SPARE_COLUMNS, tokens // SPARE_SHARE))


@dataclass(frozen=True, order=True)
class Extent:
    """What rows may come to take.

    Attributes:
        tokens: Columns of the decoder's own cache: for a causal model prompt
            and completion, else the completion and its start token.
        source_tokens: Columns of the cross cache; 0 for a causal model.
    """

    tokens: int
    source_tokens: int = 0

    def over(self, other: Extent) -> Extent:
        """The smallest extent that holds either."""
        return Extent(max(self.tokens, other.tokens), max(self.source_tokens, other.source_tokens))


@dataclass(frozen=True, kw_only=True)
class CacheExtent:
    """The shape of the whole cache, self and cross."""

    rows: int = 0
    columns: int = 0
    source_columns: int = 0


@dataclass(frozen=True, kw_only=True)
class CacheBudget:
    """How large a cache may be.

    Attributes:
        bytes: Upper bound on the whole cache; None where rows alone are bounded.
        token_bytes: Bytes of one row's column in all layers.
        row_bytes: Bytes of a row's states, whatever its length.
        source_token_bytes: Bytes of one row's column of the cross cache in all layers.
    """

    bytes: int | None
    token_bytes: int
    row_bytes: int = 0
    source_token_bytes: int = 0

    def cache_bytes(self, extent: CacheExtent) -> int:
        return extent.rows * (
            self.row_bytes
            + extent.columns * self.token_bytes
            + extent.source_columns * self.source_token_bytes
        )

    def fits(self, rows: int, widest: Extent, held_bytes: int = 0) -> bool:
        """Whether rows can be decoded together.

        Args:
            rows: Number of rows.
            widest: Extent that holds each row at its longest.
            held_bytes: Bytes that are held beside the cache meanwhile.
        """
        return self._is_within(self._least(rows, widest), held_bytes)

    def extent_for(
        self, rows: int, widest: Extent, *, most_rows: int, held_bytes: int = 0
    ) -> CacheExtent:
        """A shape for these rows with some room to grow, as far as the budget has it.

        A row that fits nowhere gets just what it needs: it may still fit the
        memory, if not the budget.
        """
        chosen = self._least(rows, widest)
        blocks = replace(chosen, source_columns=_blocks(widest.source_tokens))
        if self._is_within(blocks, held_bytes):
            chosen = blocks
        for columns in range(_blocks(widest.tokens + SPARE_COLUMNS), chosen.columns, -1):
            roomy = replace(chosen, columns=columns)
            if self._is_within(roomy, held_bytes):
                chosen = roomy
                break
        per_row = self.cache_bytes(chosen) // rows
        if self.bytes is not None and per_row > 0:
            most_rows = min(most_rows, (self.bytes - held_bytes) // per_row)
        return CacheExtent(
            rows=max(rows, min(most_rows, 2 * rows)),
            columns=chosen.columns,
            source_columns=chosen.source_columns,
        )

    def _least(self, rows: int, widest: Extent) -> CacheExtent:
        # The edge goes on for so many steps before what stands behind it has to
        # be moved back. One row alone never moves.
        spare = spare_columns(widest.tokens) if rows > 1 else 0
        return CacheExtent(
            rows=rows, columns=widest.tokens + spare, source_columns=widest.source_tokens
        )

    def _is_within(self, extent: CacheExtent, held_bytes: int) -> bool:
        return self.bytes is None or self.cache_bytes(extent) + held_bytes <= self.bytes


def _blocks(columns: int) -> int:
    return -(-columns // SPARE_COLUMNS) * SPARE_COLUMNS
