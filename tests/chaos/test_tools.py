"""The suite's own tools: forks are real commands, no run is forgotten, slowness excuses so much."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.chaos.fault import Fault
from tests.chaos.forked import Forks, fork_server
from tests.chaos.journal import Entry, Journal, code_commit
from tests.chaos.players import RUNS_PER_TURN, Played, Turn, turns_of
from tests.chaos.report import BEGIN, END, row, update_report
from tests.chaos.run import Run
from tests.chaos.stage import SWEEP_SECONDS, Needs, Pace
from tests.chaos.verdict import MACHINE_SECONDS, Verdict, _judge_recovery

GOOD = Verdict(lost=0, duplicated=0, repeated=4, recovery_seconds=1.5, problems=())


@pytest.fixture(scope="module")
def forks() -> Any:
    with fork_server() as server:
        yield server


def start(forks: Forks, folder: Path, *arguments: str) -> Any:
    environment = {"TGP_HOME": str(folder / "home"), "PATH": "/bin"}
    return forks.start(arguments, environment, output=folder / "output", notes=folder / "notes")


@pytest.mark.acceptance
def test_a_fork_prints_and_exits_as_the_command_does(forks: Forks, tmp_path: Path) -> None:
    process = start(forks, tmp_path, "--version")
    output, notes = process.communicate(timeout=30)
    assert (process.returncode, notes) == (0, "")
    assert output.startswith("tgp-jobs ")
    process = start(forks, tmp_path, "status", "nothere")
    _, notes = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "nothere" in notes


@pytest.mark.acceptance
def test_a_fork_can_be_killed_and_waited_for(forks: Forks, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "catalogue.toml").write_text('[models.slow]\nengine = "null"\nload_seconds = 60\n')
    (tmp_path / "p.txt").write_text("a prompt\n")
    process = start(forks, tmp_path, "run", str(tmp_path / "p.txt"), "--model", "slow")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    assert process.poll() is None
    process.kill()
    assert process.wait(30) == -signal.SIGKILL
    # and what is over is not killed again
    process.kill()


def entry(
    fault: str, kind: str, *, first: int = 0, runs: int = 3, seed: int = 0, verdict: Verdict = GOOD
) -> Entry:
    turn = Turn(fault=fault, kind=cast(Any, kind), numbers=range(first, first + runs))
    return Entry.of(Played(turn=turn, verdicts=(verdict,) * runs), seed=seed, commit="abc")


def test_the_table_tells_of_every_run_in_the_journal(tmp_path: Path) -> None:
    path, journal = tmp_path / "report.md", Journal(tmp_path / "report.jsonl")
    path.write_text(f"before\n\n{BEGIN}\n{END}\n\nafter\n", encoding="utf-8")
    late = replace(GOOD, recovery_seconds=9.25, excuse="slow")
    for each in (
        entry("flood", "postgres"),
        entry("fire", "sqlite"),
        entry("fire", "sqlite", first=3, runs=4, verdict=late),
        entry("forgotten", "sqlite"),
        entry("fire", "sqlite", first=7, seed=1),
    ):
        journal.add(each)
    for _ in range(2):
        update_report(path, journal, seed=0, order=["fire", "flood"])
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert [line for line in text.splitlines() if line.startswith("| f")][1:] == [
        "| fire | SQLite | 7 | 0 | 0 | 0 | 4, 4 | 9.2, 9.2 |",
        "| flood | Postgres | 3 | 0 | 0 | 0 | 4, 4 | 1.5, 1.5 |",
    ]
    assert "10 runs, of which 0 broke a promise and 4 recovered later" in text
    assert "abc (10)" in text


def test_what_is_played_again_counts_once_and_the_longer_one_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "report.jsonl")
    again = replace(GOOD, repeated=8)
    journal.add(entry("fire", "sqlite", runs=3))
    journal.add(entry("fire", "sqlite", runs=3, verdict=again))
    journal.add(entry("fire", "sqlite", runs=2))
    (kept,) = journal.entries(seed=0)
    assert kept.repeated == (8, 8, 8)


def test_only_turns_that_are_not_in_the_journal_are_missing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "report.jsonl")

    def turn(kind: str, first: int, runs: int) -> Turn:
        return Turn(fault="fire", kind=cast(Any, kind), numbers=range(first, first + runs))

    turns = [turn("sqlite", 0, 10), turn("sqlite", 10, 10), turn("postgres", 0, 10)]
    assert journal.missing(turns, seed=0) == turns
    journal.add(entry("fire", "sqlite", runs=10))
    journal.add(entry("fire", "postgres", runs=3))
    assert journal.missing(turns, seed=0) == turns[1:]
    assert journal.missing(turns, seed=1) == turns


def test_a_run_that_broke_a_promise_is_counted_in_its_row() -> None:
    broken = replace(GOOD, lost=2, problems=("2 prompts have no result",))
    entries = [entry("fire", "sqlite"), entry("fire", "sqlite", first=3, runs=1, verdict=broken)]
    assert row("fire", "sqlite", entries).startswith("| fire | SQLite | 4 | 1 | 2 | 0 |")


def test_the_commit_of_the_code_is_told_whatever_becomes_of_docs(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", *who, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert code_commit(tmp_path) == "unknown"
    (tmp_path / "docs").mkdir()
    for file in ("code.py", "docs/report.md"):
        (tmp_path / file).write_text("one")
        git("add", "-A")
        git("commit", "-qm", file)
    commit = git("log", "-1", "--format=%h", "HEAD~1")

    (tmp_path / "docs/report.md").write_text("two")
    assert code_commit(tmp_path) == commit

    (tmp_path / "code.py").write_text("two")
    assert code_commit(tmp_path) == f"{commit}+"


def test_the_first_runs_of_all_faults_come_first_and_none_twice() -> None:
    def fault(name: str) -> Fault:
        return Fault(name=name, play=lambda _run: None, needs=Needs())

    runs = 2 * RUNS_PER_TURN + 1
    turns = turns_of([(fault("fire"), "sqlite"), (fault("flood"), "sqlite")], runs)
    assert [turn.numbers.start for turn in turns] == sorted(turn.numbers.start for turn in turns)
    played = [(turn.fault, number) for turn in turns for number in turn.numbers]
    assert sorted(played) == [
        *(("fire", number) for number in range(runs)),
        *(("flood", number) for number in range(runs)),
    ]


@pytest.mark.parametrize(
    ("slowness", "late_seconds", "problems", "excused"),
    [
        (1.0, 0.9, 0, False),
        (1.0, 1.1, 1, False),
        (3.0, 2.9, 0, True),
        (3.0, 3.1, 1, False),
    ],
)
def test_a_late_recovery_is_excused_as_far_as_the_machine_was_slow(
    slowness: float, late_seconds: float, problems: int, excused: bool
) -> None:
    needs = Needs(lease_seconds=2.0)
    run = SimpleNamespace(
        stage=SimpleNamespace(needs=needs), allowance_seconds=0.5, slowness=slowness, problems=[]
    )
    promised = 2.0 + SWEEP_SECONDS + 0.5
    excuse = _judge_recovery(cast(Run, run), promised + late_seconds * MACHINE_SECONDS)
    assert len(run.problems) == problems
    assert (excuse is not None) is excused


def test_slowness_is_told_beside_the_fastest_of_its_kind() -> None:
    pace = Pace()
    assert pace.slowness("submit", 0.5) == 1.0
    assert pace.slowness("results", 0.1) == 1.0
    assert pace.slowness("submit", 0.25) == 1.0
    assert pace.slowness("submit", 1.0) == 4.0
