"""The suite's own tools: forks are real commands, rows are merged, slowness excuses so much."""

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
from tests.chaos.players import RUNS_PER_TURN, turns_of
from tests.chaos.report import BEGIN, END, Row, runs_in_report, update_report
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


def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.md"
    path.write_text(f"before\n\n{BEGIN}\n{END}\n\nafter\n", encoding="utf-8")
    return path


def test_a_row_takes_the_place_of_its_older_one_and_leaves_the_others(tmp_path: Path) -> None:
    path = report(tmp_path)
    order = ["fire", "flood"]
    for fault, kind, runs in (
        ("flood", "postgres", 2),
        ("fire", "sqlite", 3),
        ("flood", "postgres", 5),
    ):
        row = Row.of(fault, cast(Any, kind), [GOOD] * runs)
        update_report(path, [row], seed=0, order=order)
    assert runs_in_report(path) == {("fire", "SQLite"): 3, ("flood", "Postgres"): 5}
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert text.index("fire") < text.index("flood")


def test_a_run_that_broke_a_promise_is_counted_in_its_row() -> None:
    broken = replace(GOOD, lost=2, problems=("2 prompts have no result",))
    assert Row.of("fire", "sqlite", [GOOD, broken]).cells[:4] == ("2", "1", "2", "0")


def test_the_first_runs_of_all_faults_come_first_and_none_twice() -> None:
    def fault(name: str, most_runs: int | None = None) -> Fault:
        return Fault(name=name, play=lambda _run: None, needs=Needs(), most_runs=most_runs)

    runs = 2 * RUNS_PER_TURN + 1
    turns = turns_of(
        [(fault("fire"), "sqlite"), (fault("flood", most_runs=3), "sqlite")],
        lambda fault: fault.runs(runs),
    )
    assert [turn.numbers.start for turn in turns] == sorted(turn.numbers.start for turn in turns)
    played = [(turn.fault, number) for turn in turns for number in turn.numbers]
    assert sorted(played) == [
        *(("fire", number) for number in range(runs)),
        *(("flood", number) for number in range(3)),
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
