"""Commands at the wrong moment, twice at once, and killed half-way."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

from tests.chaos.fault import fault
from tests.chaos.process_faults import while_generating
from tests.chaos.run import PROMPTS, Job, Run
from tests.chaos.stage import SWEEP_SECONDS, Needs

FEW = tuple(f"what comes after the number {number}" for number in range(12))


def ids_of(run: Run, done: Sequence[subprocess.CompletedProcess[str]]) -> set[str]:
    """The job ids that commands printed; all of them must have succeeded."""
    for each in done:
        if each.returncode != 0:
            run.problems.append(f"{each.args} ended with {each.returncode}: {each.stderr}")
    return {each.stdout.strip() for each in done if each.returncode == 0}


@fault("cancel, twice at once")
def cancel(run: Run) -> None:
    job = while_generating(run)
    job.status = "cancelled"
    done = run.at_once(("cancel", job.id), ("cancel", job.id))
    if run.stage.ledger.job_status(job.id) == "completed":
        # The job was quicker, which both commands have to say.
        job.status = "completed"
        if {each.returncode for each in done} != {2}:
            run.problems.append("a cancel of an ended job did not say so")
        return
    ids_of(run, done)
    at_once = run.stage.ledger.result_count(job.id)
    run.wait_seconds(SWEEP_SECONDS)
    if (later := run.stage.ledger.result_count(job.id)) != at_once:
        run.problems.append(f"{later - at_once} results came after the cancel")


@fault("submit three times with one idempotency key, two of them at once")
def same_key(run: Run) -> None:
    key = f"night-{run.stage.folder.name}-{run.number}"
    order = run.submit_command("steady", PROMPTS, "--idempotency-key", key)
    ids = ids_of(run, run.at_once(order, order))
    run.pause(1.0)
    ids |= ids_of(run, run.at_once(order))
    if len(ids) != 1 or run.stage.ledger.job_count(key) != 1:
        run.problems.append(f"one key made the jobs {sorted(ids)}")
    for job_id in ids:
        run.expect(Job(id=job_id, model="steady", prompts=PROMPTS))


@fault("`kill -9` of submit, and submit again with the same idempotency key")
def killed_submit(run: Run) -> None:
    key = f"killed-{run.stage.folder.name}-{run.number}"
    order = run.submit_command("steady", PROMPTS, "--idempotency-key", key)
    process = run.stage.box.start(*order)
    # About as long as it takes: before the commit, between it and the message, after.
    run.pause(0.3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (job_id,) = ids_of(run, run.at_once(order))
    run.expect(Job(id=job_id, model="steady", prompts=PROMPTS))
    if run.stage.ledger.job_count(key) != 1:
        run.problems.append("the job is there more than once")


@fault("retry, twice at once, of prompts that failed", Needs(max_crashes=1))
def retry(run: Run) -> None:
    """One prompt kills its worker until it has failed; then it is harmless and tried again."""
    poison = run.random.choice(FEW)
    run.stage.poison_file.write_text(poison)
    job = run.submit("quick", FEW, shard_size=len(FEW))
    # Too early: the job is not at its end.
    run.pause(0.5)
    run.at_once(("retry", job.id))
    run.wait_for_end(job)
    run.stage.poison_file.unlink()
    run.strikes += sum(begun.prompt == poison for begun in run.trace.read())
    run.at_once(("retry", job.id), ("retry", job.id))
    run.wait_for_end(job)
