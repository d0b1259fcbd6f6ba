"""One job of a million prompts: submit, complete, read back.

    python -m benchmarks.million [--prompts 1000000] [--database sqlite|postgres|both]

Real commands, one real worker with the null engine, Redis, SQLite and then
Postgres. Printed: the seconds of each step, the most memory that each process
held, servers included, and what `tgp-jobs status` takes while the job runs: in
seconds, and in seconds of CPU, which say how much of it was waiting for a busy
machine. The lines that come back are counted and must be in order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles

import psutil
from sqlalchemy import text

from benchmarks.queue import TGP_JOBS, write_prompts
from benchmarks.submit import Usage, high_water_kib, run_once
from jobs.database import Database, upgrade
from jobs.store.reading import job_report
from tests.acceptance.box import Box
from tests.services import RealRedis, fresh_database, own_redis, real_postgres

SECONDS_BETWEEN_STATUSES = 2.0
MIB = 2**20
CATALOGUE = '[models.null]\nengine = "null"\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=1_000_000)
    parser.add_argument("--database", choices=("sqlite", "postgres", "both"), default="both")
    arguments = parser.parse_args()
    kinds = ("sqlite", "postgres") if arguments.database == "both" else (arguments.database,)
    for kind in kinds:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tgp-million-")))
            redis = stack.enter_context(own_redis())
            settings = {"TGP_REDIS_URL": redis.url}
            # The defaults of a box, rather than those of the fault tests.
            settings |= {"TGP_LEASE_SECONDS": "60", "TGP_SWEEP_SECONDS": "30"}
            settings |= {"TGP_MICRO_BATCH_ROWS": "256"}
            if kind == "postgres":
                server = stack.enter_context(real_postgres())
                url = stack.enter_context(fresh_database(server, template="template1"))
                database = Database(url, pooled=False)
                upgrade(database)
                database.close()
                settings["TGP_DATABASE_URL"] = url
            box = Box(folder / "home", settings)
            stack.callback(box.close)
            print(f"{kind}, {arguments.prompts} prompts in one job")
            run_million(box, redis, folder, arguments.prompts)


def run_million(box: Box, redis: RealRedis, folder: Path, prompts: int) -> None:
    box.catalogue(CATALOGUE)
    box.run("list")
    worker = box.worker("--model", "null")
    file = folder / "prompts.jsonl"
    write_prompts(file, prompts)
    began = time.monotonic()
    show("submit", run_once(command("submit", str(file), "--model", "null"), box.environment))
    url = box.environment.get("TGP_DATABASE_URL", f"sqlite:///{box.home / 'tgp-jobs.db'}")
    database = Database(url, pooled=False)
    (listed,) = json.loads(box.run("list", "--json").stdout)
    job_id: str = listed["id"]
    postgres_mib = 0.0
    with statuses(box, job_id) as taken:
        while not job_report(database, job_id).ended:
            if not database.is_sqlite:
                postgres_mib = max(postgres_mib, memory_of_postgres(database) / MIB)
            time.sleep(0.5)
    print(f"  from submit to the last result: {time.monotonic() - began:.1f} s")
    database.close()
    for name, process in (("parent", worker.process.pid), ("child", worker.child)):
        print(f"  worker's {name}: at most {high_water_kib(process) / 1024:.1f} MiB")
    if postgres_mib:
        print(f"  Postgres' processes together: at most {postgres_mib:.1f} MiB")
    with redis.client() as client:
        print(f"  Redis: at most {client.info('memory')['used_memory_peak'] / MIB:.1f} MiB")
    if len(taken) > 1:
        print(
            f"  status while it ran, {len(taken)} times: "
            f"{distribution([usage.wall_seconds for usage in taken])}; of CPU "
            f"{distribution([usage.cpu_seconds for usage in taken])}"
        )
    output = folder / "results.jsonl"
    show("results", run_once(command("results", job_id, "-o", str(output)), box.environment))
    check(output, prompts)


def command(*arguments: str) -> list[str]:
    return [str(TGP_JOBS), *arguments]


@contextmanager
def statuses(box: Box, job_id: str) -> Iterator[list[Usage]]:
    """What `status` takes, asked now and then until the end."""
    taken: list[Usage] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(SECONDS_BETWEEN_STATUSES):
            taken.append(run_once(command("status", job_id, "--json"), box.environment))

    thread = threading.Thread(target=ask, name="status", daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()


def memory_of_postgres(database: Database) -> int:
    """Bytes that the server's processes hold, what they share counted once.

    0 if they may not be looked at.
    """
    with database.read() as connection:
        backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        try:
            server = psutil.Process(backend).parents()[0]
            processes = [server, *server.children()]
        except psutil.Error:
            return 0
    held = 0
    for process in processes:
        with suppress(psutil.Error):  # a backend that has ended meanwhile
            held += process.memory_full_info().pss
    return held


def distribution(seconds: Sequence[float]) -> str:
    p95 = quantiles(seconds, n=20, method="inclusive")[-1]
    return f"median {median(seconds):.2f} s, p95 {p95:.2f} s, max {max(seconds):.2f} s"


def show(name: str, usage: Usage) -> None:
    print(
        f"  {name}: {usage.wall_seconds:.1f} s, {usage.cpu_seconds:.1f} s of CPU, "
        f"at most {usage.peak_mib:.1f} MiB",
        flush=True,
    )


def check(output: Path, prompts: int) -> None:
    """Every prompt has one line, in the order of the file."""
    with output.open() as file:
        indices = (json.loads(line)["index"] for line in file)
        in_order = sum(index == place for place, index in enumerate(indices))
    if in_order != prompts:
        raise RuntimeError(f"{in_order} of {prompts} results are in their place")
    print(f"  {in_order} results, in order")


if __name__ == "__main__":
    main()
