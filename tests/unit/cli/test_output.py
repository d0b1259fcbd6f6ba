from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output import duration_text, iso_time, printable
from cli.progress import JobProgress
from cli.result_target import open_target
from jobs.database import Database
from jobs.store.reading import job_report
from jobs.store.reports import JobReport, ModelState
from jobs.wording import json_text


@given(st.text())
def test_json_holds_the_text_and_no_control_character(text: str) -> None:
    written = json_text({"text": text})
    assert json.loads(written) == {"text": text}
    assert not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in written)
    assert len(written.splitlines()) == 1


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text, keep_newlines=True).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_told_as_people_say_it(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_times_are_in_utc() -> None:
    assert iso_time(datetime(2024, 5, 1, 12, tzinfo=UTC)) == "2024-05-01T12:00:00.000Z"
    assert iso_time(None) is None


def test_a_terminal_is_spared_what_it_would_act_on(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    with open_target(None, live=False) as write:
        write("a\x1b]0;title\x07\tb\n")
    assert capsysbinary.readouterr().out == b"a\\x1b]0;title\\x07\tb\n"


class TestProgress:
    @pytest.fixture
    def job(self, job_id: str, sqlite_database: Database) -> Iterator[JobReport]:
        return job_report(sqlite_database, job_id)  # type: ignore[return-value]

    def test_a_log_file_gets_a_line_when_something_changed_and_some_time_has_passed(
        self, job: JobReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        with JobProgress() as progress:
            progress.show(job, ModelState(state="not loaded"))
            progress.show(replace(job, completed=1))
            now = 11.0
            progress.show(replace(job, completed=2, failed=1, tokens_per_second=2.0))
        assert capsys.readouterr().err.splitlines() == [
            f"job {job.id}: 0 of 3 prompts, queued, model not loaded",
            f"job {job.id}: 3 of 3 prompts, queued, 1 failed, 2.0 tok/s",
        ]

    def test_a_terminal_gets_a_bar_on_stderr(
        self, job: JobReport, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with JobProgress() as progress:
            progress.show(replace(job, completed=2))
        printed = capsys.readouterr()
        assert "2/3" in printed.err
        assert printed.out == ""
