"""Where results go: stdout, a file that appears whole, or something that is no file."""

from __future__ import annotations

import gzip
import io
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from cli.output import note
from jobs.errors import BadInputError

Write = Callable[[str], None]
STANDARD_OUTPUT = "-"
# What a terminal would act on or show in another order; line ends and tabs are harmless.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@contextmanager
def open_target(output: str | None, *, live: bool) -> Iterator[Write]:
    """A function that writes text to the place the user named.

    A regular file is written under another name and takes the place of the old
    one at the end, so that nobody ever reads half of it; with an exception the
    old one stays.

    Args:
        output: A path; None or "-" is stdout. A name that ends in .gz is compressed.
        live: Somebody may be reading along: write in place, and at once.

    Raises:
        BadInputError: The path cannot be written.
    """
    if output is None or output == STANDARD_OUTPUT:
        yield from _standard_output(live=live)
        return
    path = Path(output)
    in_place = live or (path.exists() and not path.is_file())
    if path.is_dir():
        raise BadInputError(f"{output}: is a directory; expected a file's name")
    try:
        # A link stays a link: what it points to is replaced.
        opened = path.open("wb") if in_place else _Replacement(path.resolve())
    except OSError as error:
        raise BadInputError(f"{output}: cannot be written: {error.strerror or error}") from None
    with opened as binary:
        yield from _text(binary, compressed=path.suffix == ".gz", live=live)


def _standard_output(*, live: bool) -> Iterator[Write]:
    # Python keeps here what it was started with, None if that was closed.
    if sys.__stdout__ is None:
        note("standard output is closed: the results are not shown; -o PATH writes them to a file")
    sys.stdout.flush()
    binary = sys.stdout.buffer
    is_terminal = sys.stdout.isatty()

    def write(text: str) -> None:
        if is_terminal:
            text = for_terminal(text)
        # As bytes, because results are UTF-8 whatever the locale says.
        binary.write(text.encode("utf-8", "backslashreplace"))
        if live or is_terminal:
            binary.flush()

    yield write
    binary.flush()


def for_terminal(text: str) -> str:
    """The text with escapes, JSON's own where that is what it is, for what a terminal acts on."""
    return _CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _text(binary: BinaryIO, *, compressed: bool, live: bool) -> Iterator[Write]:
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=binary, mode="wb")) if compressed else binary
    is_terminal = stream.isatty()  # -o /dev/tty

    def write(text: str) -> None:
        if is_terminal:
            text = for_terminal(text)
        stream.write(text.encode("utf-8", "backslashreplace"))
        if live:
            stream.flush()

    try:
        yield write
    finally:
        if stream is not binary:
            stream.close()


class _Replacement:
    """A new file that takes an old one's place when it is closed without an exception."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        self._file = io.BufferedWriter(io.FileIO(self._temporary, "x"))

    def __enter__(self) -> BinaryIO:
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                self._temporary.replace(self._path)
        finally:
            with suppress(FileNotFoundError):
                self._temporary.unlink()
