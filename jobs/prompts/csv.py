"""CSV prompt files: a header with the column prompt, then a request per record."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from jobs.prompts.draft import RefusedLine, RequestDraft
from jobs.prompts.lines import (
    LONGEST_LINE_BYTES,
    LONGEST_LINE_TEXT,
    LineError,
    Record,
    decode_line,
    is_blank,
    numbered_lines,
)
from jobs.prompts.parameters import PARAMETERS, unknown_problem

COLUMNS = ("prompt", "custom_id", *PARAMETERS)
# Names of the column of row numbers that pandas puts first: in the file it
# writes, and in one that it has read and written again.
INDEX_NAMES = ("", "Unnamed: 0")


def read_csv(stream: BinaryIO, job_parameters: Mapping[str, Any]) -> Iterator[Record]:
    """Requests from CSV as RFC 4180 has it; empty cells count as not given."""
    # The limit belongs to the csv module as a whole; its own default of 128 KiB
    # would refuse long prompts.
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE_BYTES))
    records = _CsvRecords(stream)
    header: list[str] | None = None
    while True:
        try:
            row = next(records)
            if header is None:
                header = _header(row)
                continue
            if len(row) != len(header):
                raise LineError(
                    f"{len(row)} {'cell' if len(row) == 1 else 'cells'}; "
                    f"expected {len(header)} as in the header "
                    "(a cell that holds a comma or a quote needs quotes around it)"
                )
        except StopIteration:
            return
        except LineError as error:
            yield RefusedLine(line=records.line, problems=error.args)
            if header is None:
                return  # without column names nothing below can be read
        else:
            yield _request(records.line, header, row, job_parameters)


class _CsvRecords:
    """Records of a CSV stream, each with the line it begins on; goes on after a bad one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.line = 0
        self._record_bytes = 0
        self._undecodable: LineError | None = None
        self._rows = csv.reader(self._lines(stream), strict=True)

    def __next__(self) -> list[str]:
        """The next record.

        Raises:
            LineError: It is no CSV, not UTF-8 or too long.
        """
        self._record_bytes = 0
        self._undecodable = None
        try:
            row = next(self._rows)
        except csv.Error as error:
            raise LineError(_csv_problem(error)) from None
        if self._undecodable is not None:
            raise self._undecodable
        return row

    def _lines(self, stream: BinaryIO) -> Iterator[str]:
        for line, raw in numbered_lines(stream):
            if self._record_bytes == 0:
                if is_blank(raw):
                    continue
                self.line = line
            self._record_bytes += len(raw)
            if self._record_bytes > LONGEST_LINE_BYTES:
                raise LineError(
                    f"the record is too long; expected at most {LONGEST_LINE_TEXT} "
                    "(is a quote left open?)"
                )
            try:
                yield decode_line(raw)
            except LineError as error:
                # The record is read to its end all the same, or the rest of it
                # would be taken for records of its own.
                self._undecodable = error
                yield raw.decode(errors="replace")


def _csv_problem(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return "a quote is left open to the end of the file; expected a closing quote"
    return f"not valid CSV: {text}; expected quotes inside a quoted cell to be doubled"


def _header(row: list[str]) -> list[str]:
    """The column names; that of a first column with row numbers is empty.

    Raises:
        LineError: A name is unknown or stands twice, or prompt is missing.
    """
    names = [name.strip() for name in row]
    if len(names) > 1 and names[0] in INDEX_NAMES:
        names[0] = ""
    problems = [
        unknown_problem("column", name, COLUMNS)
        for name in dict.fromkeys(names[1:] if names[0] == "" else names)
        if name not in COLUMNS
    ]
    problems += [
        f"column {name!r} stands twice; expected each column once"
        for name in COLUMNS
        if names.count(name) > 1
    ]
    if "prompt" not in names:
        problems.append("the header has no column 'prompt'; expected one")
    if problems:
        raise LineError(*problems)
    return names


def _request(
    line: int, header: list[str], row: list[str], job_parameters: Mapping[str, Any]
) -> Record:
    draft = RequestDraft(line)
    for name, cell in zip(header, row, strict=True):
        if name == "prompt":
            draft.take_prompt(cell)
        elif not name or not cell:
            continue
        elif name == "custom_id":
            draft.take_custom_id(cell)
        else:
            draft.take_parameter_text(name, cell)
    return draft.finish(job_parameters)
