"""The text the tiny checkpoints learn: the project's documentation, in paragraphs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

_FENCE = re.compile(r"^\s*(```|~~~)")
_OWN_LINE = re.compile(r"^\s*([-*|>]|\d+\.)\s")  # list items and table rows
_TABLE_RULE = re.compile(r"^[\s|:-]+$")


def documentation_files(root: Path = REPOSITORY) -> list[Path]:
    """README.md, CHANGELOG.md and docs/**/*.md, as far as they are there."""
    pages = [root / "README.md", root / "CHANGELOG.md", *sorted((root / "docs").rglob("*.md"))]
    return [path for path in pages if path.is_file()]


def expand_folders(paths: Iterable[Path]) -> list[Path]:
    """Each file as it is; each folder as the .md and .py files below it."""
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted([*path.rglob("*.md"), *path.rglob("*.py")])
        if not found:
            raise FileNotFoundError(f"{path}: no such file, or a folder without .md or .py files")
        files += found
    return files


def read_paragraphs(files: Iterable[Path]) -> list[str]:
    """Every paragraph of the files, in order, each once; of .py files the docstrings."""
    paragraphs: dict[str, None] = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        for document in _docstrings(text) if path.suffix == ".py" else [text]:
            paragraphs.update(dict.fromkeys(markdown_paragraphs(document)))
    return list(paragraphs)


def markdown_paragraphs(text: str) -> Iterator[str]:
    """Split Markdown into paragraphs of at least two words.

    Hard-wrapped prose becomes one line, so that an opening typed on one line
    meets what was learned; a code block keeps its lines; a list item or a
    table row is a paragraph.
    """
    lines: list[str] = []
    in_code = False
    for line in [*text.splitlines(), ""]:
        fence = _FENCE.match(line) is not None
        starts_new = not in_code and (not line.strip() or _OWN_LINE.match(line) is not None)
        if fence or starts_new:
            yield from _paragraph(lines, "\n" if in_code else " ")
            lines = []
        if fence:
            in_code = not in_code
        elif line.strip() and not _TABLE_RULE.match(line):
            lines.append(line.rstrip() if in_code else line.strip())
    yield from _paragraph(lines, "\n" if in_code else " ")


def _paragraph(lines: list[str], joint: str) -> Iterator[str]:
    paragraph = joint.join(lines).strip()
    if len(paragraph.split()) >= 2:
        yield paragraph


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring
