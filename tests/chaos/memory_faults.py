"""A GPU without room for the rows that are there: simulated, on a CPU."""

from __future__ import annotations

from tests.chaos.fault import fault
from tests.chaos.process_faults import REAL_LEASE_SECONDS
from tests.chaos.run import Run
from tests.chaos.shortage import Shortage
from tests.chaos.stage import REAL_MODELS, Needs

ROWS = 12
SCARCE = Needs(lease_seconds=REAL_LEASE_SECONDS, micro_batch_rows=ROWS)
PROMPTS = tuple(f"the memory of the card number {number} is" for number in range(2 * ROWS))
NEW_TOKENS = 12


def play_shortage(run: Run, shortage: Shortage, most_rows_left: int) -> None:
    """A job whose engine has all its rows at first, and how few they must be at the end."""
    # One of two, so that it is loaded now: an engine keeps the number that worked.
    model = REAL_MODELS[run.number % len(REAL_MODELS)]
    shortage.write(run.stage.shortage_file)
    try:
        job = run.submit(model, PROMPTS, "--max-new-tokens", str(NEW_TOKENS), shard_size=ROWS)
        run.wait_for_end(job)
    finally:
        run.stage.shortage_file.unlink()
    batches = run.stage.ledger.batches(job.id)
    if not sum(batch.out_of_memory_retries for batch in batches):
        run.problems.append("no micro-batch tells that memory ran out")
    if batches and batches[-1].row_capacity > most_rows_left:
        run.problems.append(f"{batches[-1].row_capacity} rows, still more than {most_rows_left}")


@fault("GPU memory gone at random decode steps (simulated)", SCARCE)
def random_steps(run: Run) -> None:
    count = run.random.randrange(1, 4)
    passes = tuple(run.random.sample(range(1, 2 * NEW_TOKENS), count))
    play_shortage(run, Shortage(passes=passes), ROWS // 2)


@fault("GPU memory for fewer rows than there are (simulated)", SCARCE)
def too_many_rows(run: Run) -> None:
    most_rows = run.random.randrange(1, ROWS)
    play_shortage(run, Shortage(most_rows=most_rows), most_rows)
