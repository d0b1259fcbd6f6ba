"""What a run came to: what was lost, what was done twice, and how soon work went on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.run import Job, Run
from tests.chaos.stage import MICRO_BATCH_ROWS, SWEEP_SECONDS

# What an idle machine takes to schedule, fork and answer, on top of what is promised.
MACHINE_SECONDS = 1.0
# A process that dies has taken one micro-batch and may not have written the one before.
MOST_REPEATED_PER_STRIKE = 2 * MICRO_BATCH_ROWS


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The figures of one run.

    Attributes:
        lost: Prompts without a result that should have one.
        duplicated: Results too many: a second line for an index, or a result
            that the ledger counted twice.
        repeated: Times a prompt was begun again.
        recovery_seconds: From the blow until what it stopped was begun again;
            None when nothing had stopped.
        problems: Every promise that was not kept, in words.
        excuse: Why a recovery that was too late for an idle machine is none of them.
    """

    lost: int
    duplicated: int
    repeated: int
    recovery_seconds: float | None
    problems: tuple[str, ...]
    excuse: str | None = None


class FaultFree:
    """What each prompt comes to when nothing goes wrong: each model is asked once."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, Sequence[str]], dict[str, object]] = {}

    def texts(
        self, model: str, prompts: Sequence[str], ask: Callable[[], list[dict[str, object]]]
    ) -> dict[str, object]:
        """The completion of each prompt.

        Args:
            model: Its alias.
            prompts: The prompts of the job.
            ask: Runs them without a fault and returns the lines of results.
        """
        key = (model, tuple(prompts))
        if key not in self._texts:
            lines = ask()
            assert len(lines) == len(prompts), f"the fault-free run of {model} is not complete"
            self._texts[key] = {
                prompt: line["completion"] for prompt, line in zip(prompts, lines, strict=True)
            }
        return self._texts[key]


def judge(run: Run, fault_free: Callable[[Job], dict[str, object]]) -> Verdict:
    """Wait for the run's jobs and hold them to what is promised.

    Args:
        run: A run whose fault has been played.
        fault_free: What the prompts of a job come to without a fault.
    """
    problems = run.problems
    lost = duplicated = 0
    for job in run.jobs:
        run.wait_for_end(job)
    # Before the fault-free runs, which may follow and begin the same prompts.
    repeated, recovery = run.repeated_prompts(), run.recovery_seconds()
    for job in run.jobs:
        missing, excess = _judge_job(run, job, fault_free(job))
        lost += missing
        duplicated += excess
    if repeated > (most := run.strikes * MOST_REPEATED_PER_STRIKE):
        problems.append(f"{repeated} prompts were begun again, more than {most}")
    excuse = _judge_recovery(run, recovery)
    return Verdict(
        lost=lost,
        duplicated=duplicated,
        repeated=repeated,
        recovery_seconds=recovery,
        problems=tuple(problems),
        excuse=excuse,
    )


def _judge_recovery(run: Run, seconds: float | None) -> str | None:
    """Hold the recovery to what is promised; what a slow machine is to blame for, if it is."""
    promised = run.stage.needs.lease_seconds + SWEEP_SECONDS + run.allowance_seconds
    if seconds is None or seconds <= promised + MACHINE_SECONDS:
        return None
    most_seconds = promised + MACHINE_SECONDS * run.slowness
    late = f"work went on after {seconds:.1f} s, on a machine {run.slowness:.1f} times slower"
    if seconds <= most_seconds:
        return late
    run.problems.append(f"{late}, later than {most_seconds:.1f}")
    return None


def failed(run: Run, reason: str) -> Verdict:
    """The verdict on a run that did not come to its end: all without a result is lost."""
    lost = sum(len(job.prompts) - run.stage.ledger.result_count(job.id) for job in run.jobs)
    return Verdict(
        lost=lost,
        duplicated=0,
        repeated=run.repeated_prompts(),
        recovery_seconds=None,
        problems=(*run.problems, reason),
    )


def _judge_job(run: Run, job: Job, texts: dict[str, object]) -> tuple[int, int]:
    """How many results of a job are missing, and how many there are too many."""
    ledger, problems = run.stage.ledger, run.problems
    status = ledger.job_status(job.id)
    if status != job.status:
        problems.append(f"job {job.id} is {status}, not {job.status}")
    lines = run.results(job)
    indices = [int(str(line["index"])) for line in lines]
    if indices != sorted(indices):
        problems.append(f"the results of {job.id} are out of order")
    for line, index in zip(lines, indices, strict=True):
        problems.extend(_wrong(job, line, index, texts))
    duplicated = sum(count - 1 for count in Counter(indices).values())
    if (counted := ledger.counted_results(job.id)) != len(lines):
        problems.append(f"{counted} results of {job.id} were counted, and {len(lines)} are there")
        duplicated += max(counted - len(lines), 0)
    if stale := ledger.stale_writes(job.id):
        problems.append(f"{stale} shards of {job.id} were written by an owner that had lost them")
    expected = 0 if job.status in ("cancelled", "failed") else len(job.prompts)
    lost = max(expected - len(set(indices)), 0)
    if lost:
        problems.append(f"{lost} prompts of {job.id} have no result")
    if duplicated:
        problems.append(f"{duplicated} results of {job.id} are there twice")
    return lost, duplicated


def _wrong(job: Job, line: dict[str, object], index: int, texts: dict[str, object]) -> list[str]:
    error = line.get("error")
    code = error["code"] if isinstance(error, dict) else None
    if code != job.failing.get(index):
        return [f"prompt {index} of {job.id} ended with {code}, not {job.failing.get(index)}"]
    if code is None and line["completion"] != texts[job.prompts[index]]:
        return [f"prompt {index} of {job.id} has another text than without the fault"]
    return []
