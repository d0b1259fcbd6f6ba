from __future__ import annotations

import csv
import gzip
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cli.follow import follow_results
from jobs.database import Database
from jobs.store.control import cancel_job
from jobs.store.leases import finish_shard
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import claim_next, completed, failed, record, work_off

TIMING = {
    "queued_seconds": 1.5,
    "prefill_seconds": 0.25,
    "decode_seconds": 0.5,
    "first_token_seconds": 0.75,
    "tokens_per_second": 6.666667,
}
NO_TIMING = dict.fromkeys(TIMING, None) | {
    "queued_seconds": 1.5,
    "prefill_seconds": 0.0,
    "decode_seconds": 0.0,
}
FIRST = {
    "index": 0,
    "custom_id": None,
    "prompt": "one",
    "completion": "un\x9b31m",
    "finish_reason": "stop",
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "model": "tiny-bloom",
    "timing": TIMING,
    "logprobs": None,
    "error": None,
}
SECOND = {
    "index": 1,
    "custom_id": "second",
    "prompt": "two",
    "completion": None,
    "finish_reason": None,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "model": "tiny-bloom",
    "timing": NO_TIMING,
    "logprobs": None,
    "error": {"code": "prompt_too_long", "message": "2100 tokens; the model takes 2048"},
}
THIRD = FIRST | {
    "index": 2,
    "prompt": [{"role": "user", "content": "three"}],
    "completion": "drei\nü",
}
OUTCOMES = [completed(2, "drei\nü"), failed(1), completed(0, "un\x9b31m")]


@pytest.fixture
def done_id(job_id: str, sqlite_database: Database) -> str:
    """A job that has ended with two completions and a failed prompt."""
    work_off(sqlite_database, job_id, OUTCOMES)
    return job_id


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def test_lines_are_exactly_these_in_input_order(tgp: Tgp, done_id: str) -> None:
    result = tgp("results", done_id)
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines_of(result.stdout) == [FIRST, SECOND, THIRD]
    assert [list(line) for line in lines_of(result.stdout)] == [list(FIRST)] * 3


def test_lines_are_utf8_without_a_terminals_controls(tgp: Tgp, done_id: str) -> None:
    text = tgp("results", done_id[:4]).stdout
    assert "drei\\nü" in text
    assert "un\\u009b31m" in text


def test_json_is_the_same_lines(tgp: Tgp, done_id: str) -> None:
    assert tgp("results", done_id, "--json").stdout == tgp("results", done_id).stdout


def test_json_contradicts_another_format(tgp: Tgp, done_id: str) -> None:
    assert tgp("results", done_id, "--json", "--format", "csv").exit_code == 2


def test_failed_shows_the_failed_only(tgp: Tgp, done_id: str) -> None:
    assert lines_of(tgp("results", done_id, "--failed").stdout) == [SECOND]


def test_csv_has_a_column_for_everything(tgp: Tgp, done_id: str) -> None:
    rows = list(csv.DictReader(io.StringIO(tgp("results", done_id, "--format", "csv").stdout)))
    assert rows[1] == {
        "index": "1",
        "custom_id": "second",
        "prompt": "two",
        "completion": "",
        "finish_reason": "",
        "prompt_tokens": "0",
        "completion_tokens": "0",
        "model": "tiny-bloom",
        "queued_seconds": "1.5",
        "prefill_seconds": "0.0",
        "decode_seconds": "0.0",
        "first_token_seconds": "",
        "tokens_per_second": "",
        "logprobs": "",
        "error_code": "prompt_too_long",
        "error_message": "2100 tokens; the model takes 2048",
    }
    assert json.loads(rows[2]["prompt"]) == THIRD["prompt"]
    assert rows[2]["completion"] == "drei\nü"


def test_the_table_has_a_line_per_result_and_nothing_a_terminal_acts_on(
    tgp: Tgp, done_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = tgp("results", done_id, "--format", "table").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["index", "end"],
        ["0", "stop"],
        ["1", "prompt_too_long"],
        ["2", "stop"],
    ]
    assert "un\\x9b31m" in lines[1]
    assert "drei\\nü" in lines[3]
    assert max(map(len, lines)) <= 80


def test_openai_lines_are_those_of_a_batchs_output(tgp: Tgp, done_id: str) -> None:
    text, refused, chat = lines_of(tgp("results", done_id, "--format", "openai").stdout)
    created = text["response"]["body"]["created"]
    assert text == {
        "id": f"batch_req_{done_id}-0",
        "custom_id": "request-0",
        "response": {
            "status_code": 200,
            "request_id": f"{done_id}-0",
            "body": {
                "id": f"cmpl-{done_id}-0",
                "object": "text_completion",
                "created": created,
                "model": "tiny-bloom",
                "choices": [
                    {"index": 0, "text": "un\x9b31m", "logprobs": None, "finish_reason": "stop"}
                ],
                "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
            },
        },
        "error": None,
    }
    assert refused["custom_id"] == "second"
    assert refused["response"] is None
    assert refused["error"] == SECOND["error"]
    assert chat["response"]["body"]["object"] == "chat.completion"
    assert chat["response"]["body"]["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "drei\nü"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]


TOKENS = [
    {
        "token": " é",
        "token_id": 7,
        "logprob": -0.25,
        "top": [
            {"token": " é", "token_id": 7, "logprob": -0.25},
            {"token": "\ufffd", "token_id": 9, "logprob": -2.0},
        ],
    },
    {"token": "un", "token_id": 8, "logprob": -9999.0, "top": []},
]


@pytest.fixture
def with_logprobs(job_id: str, sqlite_database: Database) -> str:
    """A job of a text, a failed prompt and a chat, with logprobs."""
    outcomes = [completed(0, " éun", logprobs=TOKENS), failed(1)]
    work_off(sqlite_database, job_id, [*outcomes, completed(2, " éun", logprobs=TOKENS)])
    return job_id


def test_logprobs_are_written_as_they_were_kept(tgp: Tgp, with_logprobs: str) -> None:
    written = [line["logprobs"] for line in lines_of(tgp("results", with_logprobs).stdout)]
    assert written == [TOKENS, None, TOKENS]
    text = tgp("results", with_logprobs, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert json.loads(rows[0]["logprobs"]) == TOKENS


def test_openai_lines_have_logprobs_in_each_endpoint_s_own_form(
    tgp: Tgp, with_logprobs: str
) -> None:
    lines = lines_of(tgp("results", with_logprobs, "--format", "openai").stdout)
    text, chat = (lines[place]["response"]["body"]["choices"][0]["logprobs"] for place in (0, 2))
    assert text == {
        "tokens": [" é", "un"],
        "token_logprobs": [-0.25, -9999.0],
        "top_logprobs": [{" é": -0.25, "\ufffd": -2.0}, {}],
        "text_offset": [0, 2],
    }
    likeliest = {"token": " é", "logprob": -0.25, "bytes": [32, 195, 169]}
    assert chat == {
        "content": [
            likeliest
            | {"top_logprobs": [likeliest, {"token": "\ufffd", "logprob": -2.0, "bytes": None}]},
            {"token": "un", "logprob": -9999.0, "bytes": [117, 110], "top_logprobs": []},
        ],
        "refusal": None,
    }


def test_an_unfinished_job_gives_what_there_is(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    record(sqlite_database, claim_next(sqlite_database, job_id), [completed(2)])
    result = tgp("results", job_id)
    assert [line["index"] for line in lines_of(result.stdout)] == [2]
    assert result.stderr == "2 of 3 prompts have no result yet; --follow waits for them\n"
    cancel_job(sqlite_database, job_id)
    assert tgp("results", job_id).stderr == (
        "the job is cancelled: 2 of 3 prompts have no result\n"
    )


class TestOutput:
    def test_a_file_appears_whole_with_nothing_beside_it(
        self, tgp: Tgp, done_id: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "out" / "results.jsonl"
        path.parent.mkdir()
        path.write_text("old")
        result = tgp("results", done_id, "-o", path)
        assert result.stdout == ""
        assert lines_of(path.read_text()) == [FIRST, SECOND, THIRD]
        assert list(path.parent.iterdir()) == [path]

    def test_a_name_that_ends_in_gz_is_compressed(
        self, tgp: Tgp, done_id: str, tmp_path: Path
    ) -> None:
        path = tmp_path / "results.jsonl.gz"
        tgp("results", done_id, "-o", path)
        assert lines_of(gzip.decompress(path.read_bytes()).decode()) == [FIRST, SECOND, THIRD]

    def test_when_writing_fails_the_old_file_stays(
        self, tgp: Tgp, done_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("jobs.results.formats.result_document", interrupt)
        path = tmp_path / "out" / "results.jsonl"
        path.parent.mkdir()
        path.write_text("old")
        assert tgp("results", done_id, "-o", path).exit_code == 130
        assert path.read_text() == "old"
        assert list(path.parent.iterdir()) == [path]

    def test_a_link_stays_a_link(self, tgp: Tgp, done_id: str, tmp_path: Path) -> None:
        target, link = tmp_path / "target.jsonl", tmp_path / "link.jsonl"
        link.symlink_to(target)
        tgp("results", done_id, "-o", link)
        assert link.is_symlink()
        assert len(target.read_text().splitlines()) == 3

    def test_what_is_no_file_is_written_in_place(
        self, tgp: Tgp, done_id: str, tmp_path: Path
    ) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
        reader.start()
        tgp("results", done_id, "-o", pipe)
        reader.join()
        assert lines_of(read[0]) == [FIRST, SECOND, THIRD]

    @pytest.mark.parametrize(
        ("name", "reason"), [(".", "is a directory"), ("none/x", "No such file or directory")]
    )
    def test_a_place_that_cannot_be_written_is_refused(
        self, tgp: Tgp, done_id: str, tmp_path: Path, name: str, reason: str
    ) -> None:
        result = tgp("results", done_id, "-o", tmp_path / name)
        assert result.exit_code == 2
        assert reason in result.stderr


class TestFollow:
    def test_results_come_in_order_as_they_become_contiguous(
        self, job_id: str, sqlite_database: Database
    ) -> None:
        claim = claim_next(sqlite_database, job_id)
        record(sqlite_database, claim, [completed(0), completed(2)])
        rows = follow_results(sqlite_database, job_id, poll_seconds=0.01)
        assert next(rows).index == 0
        # Given that the gap is closed, then what lay behind it comes too.
        record(sqlite_database, claim, [completed(1)])
        assert [next(rows).index, next(rows).index] == [1, 2]
        finish_shard(sqlite_database, claim)
        assert list(rows) == []

    def test_a_cancelled_job_ends_with_what_is_there(
        self, tgp: Tgp, job_id: str, sqlite_database: Database
    ) -> None:
        record(sqlite_database, claim_next(sqlite_database, job_id), [completed(0), completed(2)])
        cancel_job(sqlite_database, job_id)
        result = tgp("results", job_id, "--follow")
        assert [line["index"] for line in lines_of(result.stdout)] == [0, 2]
        assert result.exit_code == 1

    def test_failed_prompts_make_it_exit_with_1(self, tgp: Tgp, done_id: str) -> None:
        result = tgp("results", done_id, "--follow", "--failed")
        assert lines_of(result.stdout) == [SECOND]
        assert result.exit_code == 1

    def test_a_job_without_failures_makes_it_exit_with_0(
        self, tgp: Tgp, job_id: str, sqlite_database: Database, tmp_path: Path
    ) -> None:
        work_off(sqlite_database, job_id, [completed(index) for index in range(3)])
        path = tmp_path / "out.jsonl"
        assert tgp("results", job_id, "--follow", "-o", path).exit_code == 0
        assert len(path.read_text().splitlines()) == 3
