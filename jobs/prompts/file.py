"""A file of prompts: checked as a whole first, then read as a stream of requests."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from jobs.errors import PromptFileError
from jobs.prompts.draft import RefusedLine
from jobs.prompts.formats import READERS, check_format, format_of_name
from jobs.prompts.lines import LineError, Record
from jobs.prompts.parameters import PromptRequest, parse_parameters, resolve_parameters
from jobs.prompts.source import STANDARD_INPUT_NAME, PromptSource, SourceError
from jobs.wording import describe

if TYPE_CHECKING:
    from jobs.prompts.custom_ids import CustomIds


SHOWN_PROBLEMS = 20


SHOWN_MODELS = 20


@dataclass(frozen=True, kw_only=True)
class PromptFileSummary:
    """What a faultless file holds.

    Attributes:
        prompt_count: Its requests.
        digest: SHA-256 over the requests in order, in hex. It does not depend
            on compression, line ends or blank lines.
        models: The models that OpenAI lines ask for, sorted; at most 20.
    """

    prompt_count: int
    digest: str
    models: tuple[str, ...]


class PromptFile:
    """A prompt file; a context manager, since standard input is kept in a temporary file.

    Attributes:
        name: The file as messages show it.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        file_format: str | None = None,
        stdin: BinaryIO | None = None,
        job_parameters: Mapping[str, Any] | None = None,
        temporary_folder: Path | None = None,
    ) -> None:
        """Settle the format; nothing is read yet.

        Args:
            source: A path, or "-" for standard input.
            file_format: "jsonl", "txt" or "csv"; by default the extension says
                it, and standard input is jsonl.
            stdin: Read for "-" instead of the process's own.
            job_parameters: The job's defaults, for the checks that need them.
            temporary_folder: Where standard input is kept.

        Raises:
            ParameterError: The job's parameters are refused.
            PromptFileError: The format is not known.
        """
        self._job_parameters = parse_parameters(job_parameters or {})
        resolve_parameters(self._job_parameters, {})
        self._source = PromptSource(source, stdin=stdin, temporary_folder=temporary_folder)
        self.name = self._source.name
        self._reader = READERS[self._format(file_format)]
        self._summary: PromptFileSummary | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is kept of standard input."""
        self._source.close()

    def validate(self) -> PromptFileSummary:
        """Check the whole file.

        Raises:
            PromptFileError: With the first problems by line, and how many there are.
        """
        # SQLite is loaded only by commands that read prompts.
        from jobs.prompts.custom_ids import CustomIds

        problems = _Problems(self.name)
        tally = _Tally()
        models: set[str] = set()
        with closing(CustomIds()) as custom_ids:
            for record in self._records():
                if record.custom_id is not None and record.line is not None:
                    custom_ids.add(record.custom_id, record.line)
                if isinstance(record, RefusedLine):
                    problems.add(record)
                    continue
                tally.add(record)
                if record.model is not None and len(models) < SHOWN_MODELS:
                    models.add(record.model)
            problems.add_duplicates(custom_ids)
        if not tally.count and not problems.count:
            problems.add(
                RefusedLine(line=None, problems=("holds no prompts; expected at least one",))
            )
        if problems.count:
            raise PromptFileError(problems.first(), problems.count)
        self._summary = PromptFileSummary(
            prompt_count=tally.count, digest=tally.digest(), models=tuple(sorted(models))
        )
        return self._summary

    def requests(self) -> Iterator[PromptRequest]:
        """The requests in order, read again from the start.

        Only when the iterator has ended is it certain that these are the
        requests that were validated: commit nothing before.

        Raises:
            PromptFileError: At the first bad line, or at the end where the file
                is no longer the one that was validated.
        """
        summary = self._summary or self.validate()
        tally = _Tally()
        for record in self._records():
            if isinstance(record, RefusedLine):
                problems = _Problems(self.name)
                problems.add(record)
                raise PromptFileError(problems.first(), problems.count)
            tally.add(record)
            yield record
        if tally.digest() != summary.digest:
            raise PromptFileError([f"{self.name}: changed while it was read; submit it again"])

    def _records(self) -> Iterator[Record]:
        try:
            with self._source.open() as stream:
                yield from self._reader(stream, self._job_parameters)
        except SourceError as error:
            yield RefusedLine(line=None, problems=(str(error),))

    def _format(self, file_format: str | None) -> str:
        try:
            if file_format is not None:
                return check_format(file_format)
            return "jsonl" if self.name == STANDARD_INPUT_NAME else format_of_name(self.name)
        except LineError as error:
            raise PromptFileError([f"{self.name}: {error}"]) from None


class _Tally:
    """Counts requests and hashes them in one normal form."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        self._encode = json.JSONEncoder(
            ensure_ascii=False, separators=(",", ":"), sort_keys=True
        ).encode

    def add(self, request: PromptRequest) -> None:
        self.count += 1
        text = request.messages if request.prompt is None else request.prompt
        # A JSON array needs no separator: none of these is a prefix of another.
        form = self._encode([request.custom_id, text, request.parameters])
        self._hash.update(form.encode())

    def digest(self) -> str:
        return self._hash.hexdigest()


class _Problems:
    """The first problems of a file by line, and the number of all."""

    def __init__(self, name: str) -> None:
        self.count = 0
        self._name = name
        # Line 0 stands for the file as a whole, whose problem outweighs the rest.
        self._found: list[tuple[int, str]] = []

    def add(self, refused: RefusedLine) -> None:
        for problem in refused.problems:
            self.count += 1
            if len(self._found) < SHOWN_PROBLEMS or refused.line is None:
                self._found.append((refused.line or 0, problem))

    def add_duplicates(self, custom_ids: CustomIds) -> None:
        self.count += custom_ids.duplicate_count()
        for custom_id, line, first_line in custom_ids.duplicates(SHOWN_PROBLEMS):
            problem = f"custom_id {describe(custom_id)} was already used on line {first_line}"
            self._found.append((line, problem))

    def first(self) -> list[str]:
        ordered = sorted(self._found, key=lambda found: found[0])[:SHOWN_PROBLEMS]
        return [
            f"{self._name}:{line}: {problem}" if line else f"{self._name}: {problem}"
            for line, problem in ordered
        ]
