"""One job of a million prompts: submit, complete, read back.

    python -m benchmarks.million [--prompts 1000000] [--database sqlite|postgres|both]

Real commands, one real worker with the null engine, Redis, SQLite and then
Postgres. Printed: the seconds of each step, the most memory that each process
held, and how long `tgp-jobs status` takes while the job runs. The lines that
come back are counted and must be in order.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import quantiles

from benchmarks.queue import TGP_JOBS, write_prompts
from benchmarks.submit import Usage, high_water_kib, run_once
from jobs.database import Database, upgrade
from jobs.store.reading import job_report
from tests.acceptance.box import Box
from tests.services import fresh_database, own_redis, real_postgres

SECONDS_BETWEEN_STATUSES = 2.0
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
            settings = {"TGP_REDIS_URL": stack.enter_context(own_redis()).url}
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
            run_million(box, folder, arguments.prompts)


def run_million(box: Box, folder: Path, prompts: int) -> None:
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
    with status_seconds(box, job_id) as taken:
        while not job_report(database, job_id).ended:
            time.sleep(0.5)
    print(f"  from submit to the last result: {time.monotonic() - began:.1f} s")
    database.close()
    for name, process in (("parent", worker.process.pid), ("child", worker.child)):
        print(f"  worker's {name}: at most {high_water_kib(process) / 1024:.1f} MiB")
    if len(taken) > 1:
        p95 = quantiles(taken, n=20)[-1]
        print(f"  status while it ran, {len(taken)} times: p95 {p95:.2f} s, max {max(taken):.2f} s")
    output = folder / "results.jsonl"
    show("results", run_once(command("results", job_id, "-o", str(output)), box.environment))
    check(output, prompts)


def command(*arguments: str) -> list[str]:
    return [str(TGP_JOBS), *arguments]


@contextmanager
def status_seconds(box: Box, job_id: str) -> Iterator[list[float]]:
    """How long `status` takes, asked now and then until the end."""
    taken: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(SECONDS_BETWEEN_STATUSES):
            usage = run_once(command("status", job_id, "--json"), box.environment)
            taken.append(usage.wall_seconds)

    thread = threading.Thread(target=ask, name="status", daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()


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
