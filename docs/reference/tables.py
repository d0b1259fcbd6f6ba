"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown, in which a bar is escaped here."""
    return "\n".join(_line(cells) for cells in (headings, ["---"] * len(headings), *rows))


def code(text: object) -> str:
    """The text as code in a sentence."""
    return f"`{text}`"


def listed(texts: Iterable[str]) -> str:
    """Texts as code, with commas between them."""
    return ", ".join(map(code, texts))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
