"""Results as text, a row at a time: JSON Lines, CSV, a table, OpenAI's batch output."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from jobs.store.records import ResultRow
from jobs.store.reports import JobReport
from jobs.wording import json_text, printable

Format = Callable[[JobReport, Iterable[ResultRow]], Iterator[str]]


CSV_COLUMNS = (
    "index",
    "custom_id",
    "prompt",
    "completion",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
    "model",
    "queued_seconds",
    "prefill_seconds",
    "decode_seconds",
    "first_token_seconds",
    "tokens_per_second",
    "logprobs",
    "error_code",
    "error_message",
)


CSV_LINE_END = "\r\n"


# Index, end, tokens and the spaces between: what a table's texts leave free.
TABLE_FIXED_WIDTH = 7 + 2 + 16 + 2 + 6 + 2 + 2


LEAST_TABLE_WIDTH = 72


def jsonl_lines(job: JobReport, rows: Iterable[ResultRow]) -> Iterator[str]:
    """A JSON object per result, in the words of the documentation."""
    for row in rows:
        yield json_text(result_document(job, row)) + "\n"


def result_document(job: JobReport, row: ResultRow) -> dict[str, Any]:
    """One result; "prompt" is a text, or the messages of a chat."""
    return {
        "index": row.index,
        "custom_id": row.custom_id,
        "prompt": row.messages if row.prompt is None else row.prompt,
        "completion": row.text,
        "finish_reason": row.finish_reason,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "model": job.model,
        "timing": {
            "queued_seconds": round(row.queued_seconds, 6),
            "prefill_seconds": round(row.prefill_seconds, 6),
            "decode_seconds": round(row.decode_seconds, 6),
            "first_token_seconds": _rounded(row.first_token_seconds),
            "tokens_per_second": _rounded(row.tokens_per_second),
        },
        "logprobs": row.logprobs,
        "error": _error(row),
    }


def csv_lines(job: JobReport, rows: Iterable[ResultRow]) -> Iterator[str]:
    """A heading and a record per result; the messages of a chat are JSON."""
    buffer = io.StringIO()
    # With both in its line end the writer puts quotes around a carriage return,
    # which a reader would otherwise take for the end of the record.
    writer = csv.writer(buffer, lineterminator=CSV_LINE_END)

    def written(values: Iterable[object]) -> str:
        writer.writerow(values)
        text = buffer.getvalue().removesuffix(CSV_LINE_END) + "\n"
        buffer.seek(0)
        buffer.truncate()
        return text

    yield written(CSV_COLUMNS)
    for row in rows:
        document = result_document(job, row)
        error = document["error"] or {}
        flat = document | document["timing"]
        flat |= {"error_code": error.get("code"), "error_message": error.get("message")}
        if row.messages is not None:
            flat["prompt"] = json.dumps(row.messages, ensure_ascii=False)
        if row.logprobs is not None:
            flat["logprobs"] = json.dumps(row.logprobs, ensure_ascii=False)
        yield written(flat[column] for column in CSV_COLUMNS)


def table_lines(job: JobReport, rows: Iterable[ResultRow]) -> Iterator[str]:
    """A line per result, cut to the terminal's width; printed as rows come, not at the end."""
    width = max(shutil.get_terminal_size((120, 24)).columns, LEAST_TABLE_WIDTH)
    text_width = (width - TABLE_FIXED_WIDTH) // 2
    yield _table_line(("index", "end", "tokens", "prompt", "completion"), text_width)
    for row in rows:
        prompt = row.prompt
        if prompt is None:
            prompt = row.messages[-1]["content"] if row.messages else ""
        end = row.finish_reason or row.error_code or ""
        completion = row.text if row.error_code is None else row.error_message
        tokens = str(row.completion_tokens)
        yield _table_line((str(row.index), end, tokens, prompt, completion or ""), text_width)


def _table_line(cells: tuple[str, str, str, str, str], text_width: int) -> str:
    index, end, tokens, *texts = cells
    shown = "  ".join(_fitted(each, text_width) for each in texts)
    return f"{index:>7}  {_fitted(end, 16)}  {tokens:>6}  {shown}".rstrip() + "\n"


def _fitted(text: str, width: int) -> str:
    # Wide characters take two cells, which len does not know.
    from rich.cells import cell_len, set_cell_size

    # More characters than this never fit, and a completion may have thousands.
    shown = printable(text[: width + 1])
    if cell_len(shown) <= width:
        return set_cell_size(shown, width)
    return set_cell_size(shown, width - 1) + "…"


def openai_lines(job: JobReport, rows: Iterable[ResultRow]) -> Iterator[str]:
    """The output file of OpenAI's Batch API, failed requests included.

    The format is that of platform.openai.com/docs/guides/batch.
    """
    for row in rows:
        yield json_text(_openai_document(job, row)) + "\n"


def _openai_document(job: JobReport, row: ResultRow) -> dict[str, Any]:
    request_id = f"{job.id}-{row.index}"
    response = None
    if row.error_code is None:
        body = _openai_body(job, row, request_id)
        response = {"status_code": 200, "request_id": request_id, "body": body}
    return {
        "id": f"batch_req_{request_id}",
        "custom_id": row.custom_id or f"request-{row.index}",
        "response": response,
        "error": _error(row),
    }


def _openai_body(job: JobReport, row: ResultRow, request_id: str) -> dict[str, Any]:
    is_chat = row.prompt is None
    content: dict[str, Any] = (
        {"message": {"role": "assistant", "content": row.text}} if is_chat else {"text": row.text}
    )
    logprobs = None
    if row.logprobs is not None:
        shown = _chat_logprobs if is_chat else _completion_logprobs
        logprobs = shown(row.logprobs)
    choice = {"index": 0, **content, "logprobs": logprobs, "finish_reason": row.finish_reason}
    return {
        "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{request_id}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": int(job.created_at.timestamp()),
        "model": job.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        },
    }


def _chat_logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "content": [
            _openai_logprob(each)
            | {"top_logprobs": [_openai_logprob(likely) for likely in each["top"]]}
            for each in tokens
        ],
        "refusal": None,
    }


def _openai_logprob(token: dict[str, Any]) -> dict[str, Any]:
    text: str = token["token"]
    # A token of part of a character has no text that its bytes could be had from.
    spelled = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": token["logprob"], "bytes": spelled}


def _completion_logprobs(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """Four lists with an entry per new token; offsets are from the start of the new text."""
    texts = [each["token"] for each in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [each["logprob"] for each in tokens],
        "top_logprobs": [
            {likely["token"]: likely["logprob"] for likely in each["top"]} for each in tokens
        ],
        "text_offset": list(accumulate(map(len, texts[:-1]), initial=0)) if texts else [],
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 6)


def _error(row: ResultRow) -> dict[str, str | None] | None:
    if row.error_code is None:
        return None
    return {"code": row.error_code, "message": row.error_message}


FORMATS: Mapping[str, Format] = {
    "jsonl": jsonl_lines,
    "csv": csv_lines,
    "table": table_lines,
    "openai": openai_lines,
}
