"""The faults by name, and how one is played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.chaos.run import Job, Run
from tests.chaos.stage import REAL_MODELS, DatabaseKind, Needs, Stage
from tests.chaos.verdict import FaultFree, Verdict, failed, judge

Play = Callable[[Run], None]
BOTH: tuple[DatabaseKind, ...] = ("sqlite", "postgres")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        name: As the table in docs/reliability.md calls it.
        play: Submits the jobs and does the damage.
        needs: What its stage has.
        databases: Where it can happen.
        possible: Whether this machine lets it happen.
    """

    name: str
    play: Play
    needs: Needs
    databases: tuple[DatabaseKind, ...] = BOTH
    possible: Callable[[], bool] = lambda: True


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    needs: Needs | None = None,
    *,
    databases: tuple[DatabaseKind, ...] = BOTH,
    possible: Callable[[], bool] = lambda: True,
) -> Callable[[Play], Play]:
    """Enter a function into the list of faults."""

    def enter(play: Play) -> Play:
        assert name not in FAULTS
        FAULTS[name] = Fault(
            name=name,
            play=play,
            needs=needs or Needs(),
            databases=databases,
            possible=possible,
        )
        return play

    return enter


def calm_model(job: Job) -> str:
    """The model that says without a fault what the job's would: null engines all say the same."""
    return REAL_MODELS[0] if job.model in REAL_MODELS else "quick"


def play_once(
    fault: Fault, stage: Stage, fault_free: FaultFree, *, seed: int, number: int
) -> Verdict:
    """One run of a fault on a stage, with the moments that the seed and the number give."""
    stage.make_ready()
    run = Run(stage, Random(f"{seed}:{fault.name}:{stage.kind}:{number}"), number)

    def texts(job: Job) -> dict[str, object]:
        return fault_free.texts(calm_model(job), job.prompts, lambda: ask(job))

    def ask(job: Job) -> list[dict[str, object]]:
        stage.make_ready()
        calm = Run(stage, Random(0), number)
        asked = calm.submit(calm_model(job), job.prompts, *job.arguments)
        calm.wait_for_end(asked)
        return calm.results(asked)

    try:
        fault.play(run)
        return judge(run, texts)
    except AssertionError as error:
        # A command that failed, a service that did not come up, a job without an end.
        return failed(run, str(error))
