"""Every refusal the user can meet, each saying what to do next.

The class decides the exit code and the machine-readable code; the docstring is
the message when none is given.
"""

from __future__ import annotations


class TgpError(Exception):
    """Something went wrong."""

    code = "error"
    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self.args[0])


class BadInputError(TgpError):
    """The input was refused and nothing was stored."""

    code = "bad_input"
    exit_code = 2


class SettingsError(BadInputError):
    """A setting has a value that cannot be used."""

    code = "bad_setting"


class CatalogueError(BadInputError):
    """The model catalogue cannot be used."""

    code = "bad_catalogue"


class UnknownModelError(BadInputError):
    """No model of that name is in the catalogue: `tgp-jobs models` lists them."""

    code = "unknown_model"


class UnknownJobError(BadInputError):
    """No job has that id: `tgp-jobs list` shows the jobs."""

    code = "unknown_job"


class AmbiguousJobError(BadInputError):
    """Several jobs start with that prefix: give more letters of the id."""

    code = "ambiguous_job"


class IdempotencyConflictError(BadInputError):
    """The idempotency key belongs to a job with other prompts or parameters."""

    code = "idempotency_conflict"


class PromptFileError(BadInputError):
    """The prompt file has errors; nothing was stored.

    Attributes:
        problems: The first problems in full, as ``file:line: text``.
        problem_count: How many there are in all.
    """

    code = "bad_prompt_file"

    def __init__(self, problems: list[str], problem_count: int | None = None) -> None:
        self.problems = problems
        self.problem_count = len(problems) if problem_count is None else problem_count
        hidden = self.problem_count - len(problems)
        lines = [*problems, f"... and {hidden} more"] if hidden > 0 else problems
        noun = "error" if self.problem_count == 1 else "errors"
        super().__init__("\n".join([*lines, f"{self.problem_count} {noun}; nothing was stored"]))


class SchemaError(TgpError):
    """The database schema is older than this program: run `tgp-jobs db upgrade`."""

    code = "old_schema"


class DatabaseUnavailableError(TgpError):
    """The database cannot be reached: `tgp-jobs doctor` says why."""

    code = "database_unavailable"


class QueueUnavailableError(TgpError):
    """Redis cannot be reached; stored work is published when a worker next sweeps."""

    code = "queue_unavailable"


class LeaseLostError(TgpError):
    """The shard now belongs to another worker; what this one still held was not written."""

    code = "lease_lost"
