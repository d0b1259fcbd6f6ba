"""Whatever is written in any format is read back, and any bytes are read or refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import PromptFileError
from jobs.prompts.parameters import PARAMETERS
from tests.unit.jobs.prompt_contents import opened, requests_of

Expected = list[tuple[str | None, str | None, dict[str, Any]]]

# Characters that a database can store, with those that formats trip over made likely.
texts = st.text(
    st.sampled_from("\n\r\t\",;'[]{} é\u2028\ufeff\U0001f600")
    | st.characters(codec="utf-8", exclude_characters="\0"),
    min_size=1,
    max_size=12,
)
parameter_sets = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 5),
        "top_k": st.integers(0, 1_000_000),
        "seed": st.integers(0, 2**63 - 1),
        "stop": st.lists(texts, min_size=1, max_size=16),
        "max_new_tokens": st.integers(1, 1_000_000),
        "eos_token_ids": st.lists(st.integers(0, 2**31 - 1), max_size=16),
        "logprobs": st.integers(0, 20),
        "echo": st.booleans(),
    },
)


def custom_id_or_itself(row: dict[str, Any]) -> object:
    return row.get("id", id(row))


rows = st.lists(
    st.fixed_dictionaries({"prompt": texts, "parameters": parameter_sets}, optional={"id": texts}),
    min_size=1,
    max_size=5,
    unique_by=custom_id_or_itself,
)


def packed(text: str, *, has_bom: bool, is_gzipped: bool) -> bytes:
    content = text.encode("utf-8-sig" if has_bom else "utf-8")
    return gzip.compress(content) if is_gzipped else content


def read_back(content: bytes, file_format: str) -> list[tuple[str | None, str | None, Any]]:
    return [
        (read.custom_id, read.prompt, read.parameters) for read in requests_of(content, file_format)
    ]


def expected_of(rows: list[dict[str, Any]]) -> Expected:
    return [(row.get("id"), row["prompt"], row["parameters"]) for row in rows]


class TestRoundTrips:
    @given(rows, st.sampled_from(["\n", "\r\n", "\n\n \r\n"]), st.booleans(), st.booleans())
    def test_jsonl_gives_back_what_was_written(
        self, rows: list[dict[str, Any]], end: str, has_bom: bool, is_gzipped: bool
    ) -> None:
        written = [
            {"prompt": row["prompt"], "custom_id": row.get("id")} | row["parameters"]
            for row in rows
        ]
        text = "".join(json.dumps(line, ensure_ascii=is_gzipped) + end for line in written)
        content = packed(text, has_bom=has_bom, is_gzipped=is_gzipped)
        assert read_back(content, "jsonl") == expected_of(rows)

    @given(rows, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
    def test_csv_gives_back_what_was_written(
        self, rows: list[dict[str, Any]], end: str, has_bom: bool, is_gzipped: bool
    ) -> None:
        file = io.StringIO()
        writer = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerow(["custom_id", "prompt", *PARAMETERS])
        for row in rows:
            cells = dict(row["parameters"])
            for name in {"stop", "eos_token_ids"} & cells.keys():
                cells[name] = json.dumps(cells[name])
            spelled = [cells.get(name, "") for name in PARAMETERS]
            writer.writerow([row.get("id", ""), row["prompt"], *spelled])
        content = packed(file.getvalue(), has_bom=has_bom, is_gzipped=is_gzipped)
        assert read_back(content, "csv") == expected_of(rows)

    @given(
        st.lists(texts.map(lambda text: text.translate({10: "", 13: ""}) + "."), min_size=1),
        st.sampled_from(["\n", "\r\n", "\n\n \r\n"]),
        st.booleans(),
        st.booleans(),
    )
    def test_text_gives_back_what_was_written(
        self, prompts: list[str], end: str, has_bom: bool, is_gzipped: bool
    ) -> None:
        text = "".join(prompt + end for prompt in prompts)
        # A mark of the text's own at the very start cannot be told from the file's.
        content = packed(text, has_bom=has_bom or text[0] == "\ufeff", is_gzipped=is_gzipped)
        assert [prompt for _, prompt, _ in read_back(content, "txt")] == prompts


def fuzz(content: bytes, file_format: str) -> None:
    with opened(content, file_format) as file:
        try:
            file.validate()
        except PromptFileError as error:
            error.message.encode()
            return
        list(file.requests())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
keys = st.sampled_from(
    [*PARAMETERS, "prompt", "messages", "custom_id", "body", "url", "method", "model", "n"]
)
messages = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name"]), json_values), max_size=2
)
values = json_values | messages


class TestArbitraryBytes:
    @given(st.binary(max_size=200), st.sampled_from(["jsonl", "txt", "csv"]))
    def test_bytes_are_read_or_refused(self, content: bytes, file_format: str) -> None:
        fuzz(content, file_format)

    @given(st.binary(max_size=100))
    def test_csv_records_are_read_or_refused(self, content: bytes) -> None:
        fuzz(b"prompt,stop,seed\n" + content, "csv")

    @given(st.binary(max_size=100))
    def test_gzip_members_are_read_or_refused(self, content: bytes) -> None:
        fuzz(gzip.compress(b"a\n") + content, "txt")

    @given(st.dictionaries(keys, values | st.dictionaries(keys, values)))
    def test_json_objects_are_read_or_refused(self, fields: dict[str, object]) -> None:
        fuzz(json.dumps(fields).encode(), "jsonl")
