"""The formats of prompt files by name, and the two that are plain lines: JSONL and text.

A reader takes a stream of bytes and the job's parameters and keeps one record
in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, BinaryIO, NoReturn

from jobs.prompts.csv import read_csv
from jobs.prompts.draft import RefusedLine
from jobs.prompts.lines import (
    LineError,
    Record,
    decode_line,
    is_blank,
    numbered_lines,
    request_from_fields,
)
from jobs.wording import describe

JSON_SPACE = " \t\r\n"


Reader = Callable[[BinaryIO, Mapping[str, Any]], Iterator[Record]]


def read_jsonl(stream: BinaryIO, job_parameters: Mapping[str, Any]) -> Iterator[Record]:
    """One JSON object per line, our own or OpenAI's."""
    # Built once: json.loads would build it again for every line.
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    is_first = True
    for line, raw in numbered_lines(stream):
        if is_blank(raw):
            continue
        if is_first and raw.lstrip().startswith(b"["):
            problem = "a JSON array; expected one JSON object per line (`jq -c '.[]'` makes them)"
            yield RefusedLine(line=line, problems=(problem,))
            return
        is_first = False
        try:
            fields = _json_object(decoder, decode_line(raw).strip(JSON_SPACE))
        except LineError as error:
            yield RefusedLine(line=line, problems=error.args)
        else:
            yield request_from_fields(line, fields, job_parameters)


def read_text(stream: BinaryIO, job_parameters: Mapping[str, Any]) -> Iterator[Record]:
    """One prompt per line, kept as it stands but for the line's end."""
    for line, raw in numbered_lines(stream):
        if is_blank(raw):
            continue
        try:
            prompt = decode_line(raw).removesuffix("\n").removesuffix("\r")
        except LineError as error:
            yield RefusedLine(line=line, problems=error.args)
        else:
            yield request_from_fields(line, {"prompt": prompt}, job_parameters)


READERS: Mapping[str, Reader] = {"jsonl": read_jsonl, "txt": read_text, "csv": read_csv}


FORMAT_OF_EXTENSION: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "txt",
    ".csv": "csv",
}


def format_of_name(name: str) -> str:
    """The format that a file's extension stands for, .gz or not.

    Raises:
        LineError: None; the text names the known ones.
    """
    path = PurePath(name.lower())
    if path.suffix == ".gz":
        path = path.with_suffix("")
    try:
        return FORMAT_OF_EXTENSION[path.suffix]
    except KeyError:
        known = ", ".join(FORMAT_OF_EXTENSION)
        given = f"the extension {path.suffix!r}" if path.suffix else "a name without extension"
        raise LineError(
            f"{given} says no format; expected one of {known} (and .gz), "
            f"or --input-format {'|'.join(READERS)}"
        ) from None


def check_format(file_format: str) -> str:
    """The format's name itself if there is such a format.

    Raises:
        LineError: There is none; the text names the known ones.
    """
    if file_format not in READERS:
        raise LineError(
            f"unknown format {describe(file_format)}; expected --input-format {'|'.join(READERS)}"
        )
    return file_format


def _json_object(decoder: json.JSONDecoder, text: str) -> dict[str, object]:
    try:
        value, end = decoder.raw_decode(text)
    except json.JSONDecodeError as error:
        raise LineError(
            f"not valid JSON at column {error.colno}: {error.msg}; "
            'expected one object such as {"prompt": "..."}'
        ) from None
    except RecursionError:
        raise LineError("the JSON is nested too deeply; expected a flat object") from None
    except LineError:
        raise
    except ValueError:  # Python refuses to convert integers of thousands of digits.
        raise LineError("a number has too many digits; expected a shorter one") from None
    if end != len(text):
        raise LineError(
            f"more text follows the JSON value at column {end + 1}; expected one object per line"
        )
    if not isinstance(value, dict):
        raise LineError(f'{describe(value)} is not an object; expected {{"prompt": "..."}}')
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise LineError(f"key {describe(key)} stands twice; expected each key once")
        seen.add(key)
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise LineError(f"{name} is not JSON; expected a number")
