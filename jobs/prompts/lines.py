"""What every line-based format shares: bounded lines, strict UTF-8, and keys to a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from jobs.prompts.draft import LONGEST_CUSTOM_ID_CHARACTERS, RefusedLine, RequestDraft
from jobs.prompts.openai import is_openai_line, take_openai_line
from jobs.prompts.parameters import PromptRequest
from jobs.wording import text_problem

Record = PromptRequest | RefusedLine


LONGEST_LINE_BYTES = 16 * 2**20


LONGEST_LINE_TEXT = "16 MiB"


REQUEST_KEYS = ("prompt", "messages", "custom_id")


class LineError(ValueError):
    """A line cannot be read at all; the arguments are the reasons, a text each."""


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends and their numbers from 1.

    A line ends at a line feed, a carriage return, or both in that order that
    Windows writes. Of a line that is too long LONGEST_LINE_BYTES + 1 bytes are
    given, for decode_line to refuse; the rest is skipped.
    """
    line = 0
    begun = b""  # a line whose end was not read yet
    while block := stream.readline(LONGEST_LINE_BYTES + 1):
        is_whole = block.endswith(b"\n")
        if not begun and is_whole and b"\r" not in block:
            line += 1
            yield line, block
            continue
        parts = (begun + block).splitlines(keepends=True)
        # A carriage return at the end of a block may have a line feed after it.
        begun = b"" if is_whole else parts.pop()
        if len(begun) > LONGEST_LINE_BYTES:
            begun = begun[:LONGEST_LINE_BYTES] + begun[-1:]
        for part in parts:
            line += 1
            yield line, part
    if begun:
        yield line + 1, begun


def is_blank(raw: bytes) -> bool:
    # Of a line that is too long, what is not blank may have been skipped.
    return len(raw) <= LONGEST_LINE_BYTES and not raw.strip()


def decode_line(raw: bytes) -> str:
    """A line as text.

    Raises:
        LineError: It is too long or not UTF-8.
    """
    if len(raw) > LONGEST_LINE_BYTES:
        raise LineError(f"the line is too long; expected at most {LONGEST_LINE_TEXT}")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise LineError(
            f"byte 0x{raw[error.start]:02x} at position {error.start + 1} is not UTF-8; "
            "expected a file saved as UTF-8"
        ) from None


def request_from_fields(
    line: int, fields: dict[str, object], job_parameters: Mapping[str, Any]
) -> Record:
    """The request that one line's keys and values make, or all that is wrong with them."""
    if len(fields) <= 2 and (request := _plain_request(line, fields)):
        return request
    draft = RequestDraft(line)
    # Tools that write tables give every line the keys of all.
    fields = {key: value for key, value in fields.items() if value is not None}
    if is_openai_line(fields):
        take_openai_line(draft, fields)
        return draft.finish(job_parameters)
    draft.take_custom_id(fields.get("custom_id"))
    if "messages" in fields and "prompt" in fields:
        draft.refuse("prompt and messages are both given; expected one of them")
    elif "messages" in fields:
        draft.take_messages(fields["messages"])
    elif "prompt" in fields:
        draft.take_prompt(fields["prompt"])
    else:
        draft.refuse('prompt is missing; expected {"prompt": "..."}')
    parameters = {key: value for key, value in fields.items() if key not in REQUEST_KEYS}
    if parameters:
        draft.take_parameters(parameters, other_keys=REQUEST_KEYS)
    return draft.finish(job_parameters)


def _plain_request(line: int, fields: dict[str, object]) -> PromptRequest | None:
    """The request of a faultless line with a prompt and perhaps a custom_id.

    Most lines of most files are such lines, and this is several times as fast
    as the full check, which must agree with it.
    """
    prompt = fields.get("prompt")
    if not isinstance(prompt, str) or not prompt or text_problem(prompt):
        return None
    custom_id: str | None = None
    if len(fields) == 2:
        given = fields.get("custom_id")
        if not isinstance(given, str) or not 0 < len(given) <= LONGEST_CUSTOM_ID_CHARACTERS:
            return None
        if text_problem(given):
            return None
        custom_id = given
    return PromptRequest(
        line=line, custom_id=custom_id, prompt=prompt, messages=None, parameters={}
    )
