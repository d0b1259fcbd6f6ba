"""What others wrote cannot play tricks with a terminal; what is piped is exact.

The commands run for real, with a pseudo-terminal for both their outputs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import update

from jobs.database import Database, open_database
from jobs.models import completions, database_now, jobs, prompts, workers
from jobs.settings import Settings
from jobs.store.reading import job_reports
from jobs.store.workers import register_worker, worker_loading
from tests.acceptance.box import TGP_JOBS
from tests.ledger import record, submit_and_claim

pytestmark = pytest.mark.integration

# Sets the title, clears the screen, turns red by the eight-bit introducer, goes
# back to the line's start, and reverses the order of letters.
EVIL = "a\x1b]0;owned\x07b\x1b[2Jc\x9b31md\re\u202efg"
HARMFUL = ["\x1b]", "\x07", "\x1b[2J", "\x9b", "\u202e", "\re"]


def on_terminal(*arguments: str, home: Path, cwd: Path | None = None) -> str:
    """What a terminal gets of a command, both outputs together."""
    keyboard, terminal = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name[:4] != "TGP_"}
    process = subprocess.Popen(
        [TGP_JOBS, *arguments],
        env=environment | {"TGP_HOME": str(home), "TERM": "xterm", "COLUMNS": "300"},
        cwd=cwd,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(keyboard, 65536):
            shown += piece
    except OSError:  # how Linux tells that the last writer is gone
        pass
    finally:
        os.close(keyboard)
        process.wait(30)
    return shown.decode("utf-8")


def harm_in(shown: str) -> list[str]:
    return [each for each in HARMFUL if each in shown]


@pytest.fixture
def evil_home(home: Path) -> Path:
    """A ledger and a catalogue where every free text is hostile."""
    database = open_database(Settings(home=home))
    hostile_ledger(database)
    database.close()
    text = json.dumps(EVIL)
    (home / "catalogue.toml").write_text(
        f"[models.evil]\nhub_id = {text}\nrevision = {text}\ndescription = {text}\n"
    )
    return home


def hostile_ledger(database: Database) -> None:
    claim = submit_and_claim(database, 2)
    record(database, claim, [0, 1], failing=[1])
    register_worker(
        database, worker_id="w", hostname=EVIL, process=1, version="1", models=["tiny-bloom", EVIL]
    )
    worker_loading(database, "w", model="tiny-bloom", stage=EVIL, done=1, total=2, unit=EVIL)
    with database.write() as connection:
        evil_job = {"name": EVIL, "source_name": EVIL, "error_message": EVIL, "error_code": EVIL}
        connection.execute(
            update(jobs).values(
                **evil_job, status="failed", finished_at=database_now(), parameters={EVIL: EVIL}
            )
        )
        connection.execute(update(prompts).values(prompt=EVIL, custom_id=EVIL))
        connection.execute(update(completions).values(text=EVIL))
        connection.execute(
            update(completions)
            .where(completions.c.error_code.is_not(None))
            .values(error_message=EVIL, error_code=EVIL)
        )
        connection.execute(update(workers).values(device=EVIL))


def only_job(home: Path) -> str:
    database = open_database(Settings(home=home))
    (job,) = job_reports(database)
    database.close()
    return job.id


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "status --json",
        "status --watch",
        "list",
        "list --json",
        "results",
        "results --format csv",
        "results --format table",
        "results --format openai",
        "results --format csv -o /dev/stdout",
        "results --follow --format csv",
        "results --failed --format csv",
        "models",
        "models --json",
        "cancel",
        "doctor",
    ],
)
def test_stored_text_reaches_no_terminal_raw(command: str, evil_home: Path) -> None:
    name, *options = command.split()
    job = [only_job(evil_home)] if name in ("status", "results", "cancel") else []
    shown = on_terminal(name, *job, *options, home=evil_home)
    assert shown.strip()
    assert harm_in(shown) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", f"{EVIL}.jsonl", "--model", "tiny-bloom"],
        ["submit", f"{EVIL}.none", "--model", "tiny-bloom"],
        ["submit", "bad.jsonl", "--model", "tiny-bloom"],
        ["submit", "good.jsonl", "--model", EVIL],
        ["submit", "good.jsonl", "--model", "tiny-bloom", "--name", EVIL],
        # As a shell's * gives them: too many files, or one that looks like an option.
        ["submit", "good.jsonl", f"{EVIL}.jsonl"],
        [f"--{EVIL}"],
        ["submit", f"--{EVIL}"],
        [EVIL],
        ["status", EVIL],
        ["results", EVIL],
        ["list", "--database-url", f"redis://{EVIL}"],
        ["list", "--database-url", f"sqlite:////{EVIL}/x.db"],
        ["list", "--catalogue", EVIL],
        ["prepare", EVIL],
        ["db", "current", "--home", EVIL],
        ["doctor", "--home", EVIL],
    ],
)
def test_names_and_errors_reach_no_terminal_raw(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / f"{EVIL}.jsonl").write_text(f"{EVIL}\n")
    (tmp_path / "good.jsonl").write_text('{"prompt": "a"}\n')
    bad = [{EVIL: 1}, {"prompt": 1, "stop": EVIL}, {"prompt": "a", "seed": EVIL}, EVIL]
    lines = [json.dumps(each, ensure_ascii=False) for each in bad]
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines, EVIL]))
    shown = on_terminal(*arguments, home=tmp_path / "home", cwd=tmp_path)
    assert shown.strip()
    assert harm_in(shown) == []


def test_the_harm_is_noticed_if_it_is_there(tmp_path: Path) -> None:
    # So that the tests above can fail.
    shown = on_terminal("--help", home=tmp_path) + EVIL
    assert harm_in(shown) == HARMFUL


def test_what_is_piped_is_exact(evil_home: Path) -> None:
    job = only_job(evil_home)

    def piped(file_format: str) -> str:
        command: list[str] = [
            str(TGP_JOBS),
            "results",
            job,
            "--format",
            file_format,
            "--home",
            str(evil_home),
        ]
        return subprocess.run(command, capture_output=True, check=True).stdout.decode()

    rows = list(csv.DictReader(io.StringIO(piped("csv"), newline="")))
    lines = [json.loads(line) for line in piped("jsonl").splitlines()]
    assert [row["prompt"] for row in rows] == [EVIL, EVIL]
    assert rows[0]["completion"] == lines[0]["completion"] == EVIL
    assert rows[1]["error_message"] == lines[1]["error"]["message"] == EVIL
    assert lines[0]["custom_id"] == EVIL


def test_a_worker_s_log_on_a_terminal_is_escaped(tmp_path: Path) -> None:
    program = (
        "from worker.log import configure_logging, get_logger\n"
        f"configure_logging('text'); evil = {EVIL!r}\n"
        "get_logger().warning('model_not_loaded', reason=evil, model=evil)\n"
        "import logging; logging.getLogger('celery').error('body: %s', evil)\n"
        "try: raise ValueError(evil)\n"
        "except ValueError: get_logger().exception('shard_crashed')\n"
    )
    path = tmp_path / "log.py"
    path.write_text(program)
    keyboard, terminal = pty.openpty()
    subprocess.run([sys.executable, str(path)], stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(keyboard, 100_000).decode()
    os.close(keyboard)
    assert shown.count("owned") == 4
    assert harm_in(shown) == []
