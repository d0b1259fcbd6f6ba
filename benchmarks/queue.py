"""How many prompts a second the queue carries, beside one Celery task per prompt.

    python -m benchmarks.queue [--prompts 20000] [--database sqlite|postgres|both]

Both sides run in the same process tree on the same real Redis and database,
with one worker of one child and an engine that answers a shard at once (256
rows; --micro-batch-rows for fewer), so the figure is the cost of queueing and
of writing results. Timed from the start of
submitting to the last result in the database; the workers are running and
warm. The ratio is the figure to quote: the seconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from benchmarks.celery_per_prompt import count_answers, metadata
from jobs.database import Database, upgrade
from jobs.store.reading import job_report
from tests.services import RealRedis, fresh_database, own_redis, real_postgres

TGP_JOBS = Path(sys.executable).parent / "tgp-jobs"
POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Figures:
    submit_seconds: float
    total_seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=20_000)
    parser.add_argument("--baseline-prompts", type=int, default=3_000)
    parser.add_argument("--database", choices=("sqlite", "postgres", "both"), default="both")
    parser.add_argument("--micro-batch-rows", type=int, default=256)
    arguments = parser.parse_args()
    kinds = ("sqlite", "postgres") if arguments.database == "both" else (arguments.database,)
    print(f"{'database':10} {'':24} {'prompts':>8} {'submit/s':>9} {'done/s':>8} {'ratio':>7}")
    for kind in kinds:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgp-bench-")))
            server = stack.enter_context(own_redis())
            if kind == "sqlite":
                urls = [f"sqlite:///{folder / 'ours.db'}", f"sqlite:///{folder / 'theirs.db'}"]
            else:
                postgres = stack.enter_context(real_postgres())
                urls = [
                    stack.enter_context(fresh_database(postgres, template="template1"))
                    for _ in range(2)
                ]
            theirs = measure_celery(folder, server, urls[1], arguments.baseline_prompts)
            ours = measure_ours(
                folder, server, urls[0], arguments.prompts, arguments.micro_batch_rows
            )
        baseline_rate = arguments.baseline_prompts / theirs.total_seconds
        rate = arguments.prompts / ours.total_seconds
        show(kind, "one Celery task a prompt", arguments.baseline_prompts, theirs, 1.0)
        show(kind, "tgp-jobs", arguments.prompts, ours, rate / baseline_rate)


def show(kind: str, name: str, prompts: int, figures: Figures, ratio: float) -> None:
    submit_rate = prompts / figures.submit_seconds
    rate = prompts / figures.total_seconds
    print(
        f"{kind:10} {name:24} {prompts:8} {submit_rate:9.0f} {rate:8.0f} {ratio:6.1f}x", flush=True
    )


def measure_ours(
    folder: Path, server: RealRedis, database_url: str, prompts: int, micro_batch_rows: int
) -> Figures:
    """The real commands: `tgp-jobs worker`, `submit`, and `status` until it is done."""
    home = folder / "home"
    home.mkdir()
    (home / "catalogue.toml").write_text('[models.null]\nengine = "null"\n')
    file = folder / "prompts.jsonl"
    write_prompts(file, prompts)
    environment = {
        **os.environ,
        "TGP_HOME": str(home),
        "TGP_REDIS_URL": server.url,
        "TGP_DATABASE_URL": database_url,
        "TGP_MICRO_BATCH_ROWS": str(micro_batch_rows),
    }
    database = Database(database_url)
    upgrade(database)
    worker = [str(TGP_JOBS), "worker", "--model", "null"]
    with process(worker, environment, folder / "ours.log", "worker_ready"):
        submit(environment, file, 1)  # warms the child and loads the null engine
        started = time.perf_counter()
        job_id = submit(environment, file, prompts)
        submitted = time.perf_counter()
        wait_until(lambda: job_report(database, job_id).status == "completed")
        ended = time.perf_counter()
    database.close()
    return Figures(submit_seconds=submitted - started, total_seconds=ended - started)


def submit(environment: dict[str, str], file: Path, prompts: int) -> str:
    """Submit the file, or one prompt of it and wait until that is done."""
    command = [str(TGP_JOBS), "submit", "--model", "null"]
    if prompts > 1:
        return subprocess.check_output([*command, str(file)], env=environment, text=True).strip()
    line = file.open().readline()
    return subprocess.check_output(
        [*command, "-", "--watch"],
        env=environment,
        text=True,
        input=line,
        stderr=subprocess.DEVNULL,
    )


def measure_celery(folder: Path, server: RealRedis, database_url: str, prompts: int) -> Figures:
    """One task per prompt, with the usual worker."""
    database = Database(database_url)
    with database.write() as connection:
        metadata.create_all(connection)
    environment = {
        **os.environ,
        "BENCHMARK_BROKER": server.url,
        "BENCHMARK_DATABASE": database_url,
    }
    worker = [
        *(str(TGP_JOBS.parent / "celery"), "-A", "benchmarks.celery_per_prompt", "worker"),
        *("--concurrency", "1", "--loglevel", "INFO", "--without-gossip", "--without-mingle"),
    ]
    app = Celery(broker=server.url, set_as_current=False)
    app.conf.update(task_ignore_result=True, task_serializer="json")
    with process(worker, environment, folder / "theirs.log", "ready."):
        with app.producer_or_acquire() as producer:
            app.send_task("answer", (-1, "warm"), producer=producer)
            wait_until(lambda: counted(database) == 1)
            started = time.perf_counter()
            for index in range(prompts):
                app.send_task("answer", (index, prompt_text(index)), producer=producer)
            submitted = time.perf_counter()
        wait_until(lambda: counted(database) == prompts + 1)
        ended = time.perf_counter()
    app.close()
    database.close()
    return Figures(submit_seconds=submitted - started, total_seconds=ended - started)


def counted(database: Database) -> int:
    with database.read() as connection:
        return count_answers(connection)


def prompt_text(index: int) -> str:
    return f"Prompt {index}: " + "words of a sentence of a usual length " * 8


def write_prompts(file: Path, count: int) -> None:
    with file.open("w") as lines:
        for index in range(count):
            lines.write(json.dumps({"prompt": prompt_text(index)}) + "\n")


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(POLL_SECONDS)


@contextmanager
def process(
    command: list[str], environment: dict[str, str], log: Path, ready: str
) -> Iterator[None]:
    """A process that is ready, and ended by pid afterwards."""
    with log.open("wb") as output:
        child = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            wait_until(lambda: ready in log.read_text() or child.poll() is not None)
            if child.poll() is not None:
                raise RuntimeError(log.read_text())
            yield
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(30)


if __name__ == "__main__":
    main()
