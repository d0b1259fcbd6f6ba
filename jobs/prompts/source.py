"""Where a prompt file's bytes come from: a path or a stream, gzipped or not, read twice."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

STANDARD_INPUT = "-"


STANDARD_INPUT_NAME = "<stdin>"


BUFFER_BYTES = 2**18


GZIP_MAGIC = b"\x1f\x8b"


UTF8_BOM = b"\xef\xbb\xbf"


UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


class SourceError(Exception):
    """The bytes cannot be read; the text says why and what was expected."""


class PromptSource:
    """Bytes that can be read from the start more than once.

    What cannot be (standard input, a pipe) is copied to a temporary file first.

    Attributes:
        name: As messages show it.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        stdin: BinaryIO | None,
        temporary_folder: Path | None,
    ) -> None:
        path = os.fspath(source)
        self._path = None if path == STANDARD_INPUT else Path(path)
        # A path may hold bytes that are no text; messages must still print.
        shown = path.encode("utf-8", "backslashreplace").decode()
        self.name = STANDARD_INPUT_NAME if self._path is None else shown
        self._stdin = stdin
        self._temporary_folder = temporary_folder
        self._copy: BinaryIO | None = None

    def close(self) -> None:
        if self._copy is not None:
            self._copy.close()
            self._copy = None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The decompressed bytes from the start; one reader at a time.

        Raises:
            SourceError: On opening, or later, wherever reading fails.
        """
        try:
            with self._open_raw() as raw:
                yield self._decompressed(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                f"the gzip data is damaged or cut short ({error}); expected a whole .gz file"
            ) from None
        except OSError as error:
            raise SourceError(_reason(error)) from None

    @contextmanager
    def _open_raw(self) -> Iterator[BinaryIO]:
        if self._copy is None:
            with self._open_original() as original:
                if self._path is not None and stat.S_ISREG(os.fstat(original.fileno()).st_mode):
                    yield original
                    return
                self._copy = self._copied(original)
        self._copy.seek(0)
        yield self._copy

    @contextmanager
    def _open_original(self) -> Iterator[BinaryIO]:
        if self._path is not None:
            if "\0" in str(self._path):
                raise SourceError("a path cannot hold a NUL character; expected a file's path")
            with self._path.open("rb", buffering=BUFFER_BYTES) as file:
                yield file
            return
        if self._stdin is None and sys.stdin is None:
            raise SourceError("there is no standard input; expected a file's path instead of -")
        yield self._stdin or sys.stdin.buffer

    def _copied(self, original: BinaryIO) -> BinaryIO:
        try:
            copy = tempfile.TemporaryFile(  # noqa: SIM115 (lives until close)
                dir=self._temporary_folder, buffering=BUFFER_BYTES
            )
        except OSError as error:
            raise _copy_error(error) from None
        try:
            shutil.copyfileobj(original, copy, BUFFER_BYTES)
        except OSError as error:
            copy.close()
            raise _copy_error(error) from None
        except BaseException:
            copy.close()
            raise
        return cast(BinaryIO, copy)

    def _decompressed(self, raw: BinaryIO) -> BinaryIO:
        """The text's bytes; gzip is known by its content, whatever the name says."""
        start = raw.read(len(GZIP_MAGIC))
        raw.seek(0)
        if start == GZIP_MAGIC:
            file = cast(io.RawIOBase, gzip.GzipFile(fileobj=raw))
            return _after_byte_order_mark(io.BufferedReader(file, buffer_size=BUFFER_BYTES))
        if self._path is not None and self._path.suffix.lower() == ".gz":
            raise SourceError("the name ends in .gz but the content is not gzip")
        return _after_byte_order_mark(raw)


def _copy_error(error: OSError) -> SourceError:
    return SourceError(f"cannot be kept in a temporary file: {error.strerror or error}")


def _after_byte_order_mark(stream: BinaryIO) -> BinaryIO:
    start = stream.read(len(UTF8_BOM))
    if start[:2] in UTF16_BOMS:
        raise SourceError("the file is UTF-16; expected a file saved as UTF-8")
    if start != UTF8_BOM:
        stream.seek(0)
    return stream


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a directory; expected a file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    return f"cannot be read: {error.strerror or error}"
