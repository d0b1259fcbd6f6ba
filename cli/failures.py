"""How a command's failure looks: a message or a JSON object on stderr, and an exit code."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any

import click

from cli.output import printable
from jobs.errors import TgpError

INTERRUPTED_EXIT_CODE = 130
# What a shell reports for a program that SIGPIPE ended, as `cat` is in `cat x | head`.
BROKEN_PIPE_EXIT_CODE = 141


class Failure(click.ClickException):
    """A failure on its way to the user."""

    def __init__(self, message: str, *, code: str, exit_code: int, as_json: bool) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code  # type: ignore[misc]  # click itself sets it so
        self.as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        if self.as_json:
            document = {"error": {"code": self.code, "message": self.message}}
            click.echo(json.dumps(document), err=True)
        else:
            click.echo(f"Error: {printable(self.message, keep_newlines=True)}", err=True)


@contextmanager
def reported(*, as_json: bool) -> Iterator[None]:
    """Turn what a command raises into what its user sees."""
    try:
        yield
    except TgpError as error:
        raise Failure(
            error.message, code=error.code, exit_code=error.exit_code, as_json=as_json
        ) from error
    except click.UsageError as error:
        if not as_json:
            # A shell's * may have put any file's name into the command line.
            message = printable(error.format_message(), keep_newlines=True)
            raise click.UsageError(message, error.ctx) from error
        raise Failure(error.format_message(), code="usage", exit_code=2, as_json=True) from error
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED_EXIT_CODE) from None
    except BrokenPipeError:
        _let_go_of_stdout()
        raise click.exceptions.Exit(BROKEN_PIPE_EXIT_CODE) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        raise Failure(f"{where}{reason}", code="os_error", exit_code=1, as_json=as_json) from error


def show_unexpected(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A mistake of ours: its traceback, without passwords and escapes for terminals."""
    import traceback

    from jobs.settings import redact_text

    lines = "".join(traceback.format_exception(kind, error, trace))
    click.echo(printable(redact_text(lines), keep_newlines=True), err=True, nl=False)


def _let_go_of_stdout() -> None:
    # The interpreter flushes stdout as it ends, and would complain once more.
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
