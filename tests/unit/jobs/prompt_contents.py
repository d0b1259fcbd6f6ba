"""Prompt files as tests write them, read from standard input."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from jobs.errors import PromptFileError
from jobs.prompts.file import PromptFile, PromptFileSummary
from jobs.prompts.parameters import PromptRequest

Content = str | bytes


def as_bytes(content: Content) -> bytes:
    return content.encode() if isinstance(content, str) else content


def opened(content: Content, file_format: str = "jsonl", **options: Any) -> PromptFile:
    stdin = io.BytesIO(as_bytes(content))
    return PromptFile("-", file_format=file_format, stdin=stdin, **options)


def requests_of(content: Content, file_format: str = "jsonl") -> list[PromptRequest]:
    with opened(content, file_format) as file:
        file.validate()
        return list(file.requests())


def summary_of(content: Content, file_format: str = "jsonl") -> PromptFileSummary:
    with opened(content, file_format) as file:
        return file.validate()


def problems_of(content: Content, file_format: str = "jsonl", **options: Any) -> list[str]:
    with (
        opened(content, file_format, **options) as file,
        pytest.raises(PromptFileError) as caught,
    ):
        file.validate()
    return [problem.removeprefix("<stdin>") for problem in caught.value.problems]


def request(line: int, prompt: str, **more: Any) -> PromptRequest:
    values: dict[str, Any] = {"custom_id": None, "messages": None, "parameters": {}} | more
    return PromptRequest(line=line, prompt=prompt, **values)


def openai(body: object, **more: object) -> str:
    return json.dumps({"url": "/v1/completions", "body": body} | more)
