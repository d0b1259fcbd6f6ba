"""The queries of the hot path find their rows by an index where reading a table would hurt.

On SQLite and on Postgres, with the rows of 3 000 jobs. One job is alive, of
eight prompts; whatever is asked about it must not read the others. Postgres
has statistics of the rows, as it makes them by itself, so that its planner has
a choice and makes it. SQLite has none, as in every ledger that nobody runs
ANALYZE on, or has them from a moment of rest or of work: it keeps one average
for all values of a column, and took "queued" for as common as "completed"
while one index held all statuses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from jobs.database import Database, open_database
from jobs.models import prompts
from jobs.settings import Settings
from jobs.store import control, joining, leases, publishing, reading, recovery, results, workers
from jobs.store.records import Claim
from jobs.store.results import result_rows
from tests.integration.test_query_plans import statements_of
from tests.ledger import claim, record, shard_ids, submit, submit_and_claim, try_claim
from tests.services import fresh_database

pytestmark = pytest.mark.integration

JOBS, PROMPTS_OF_A_JOB, PROMPTS_OF_A_SHARD = 3_000, 40, 8
SHARDS_AT_WORK = 4_000
# Whoever reads one of these from end to end reads of other people's jobs.
LARGE = {"jobs", "shards", "prompts", "completions", "micro_batches"}

NUMBERS = {
    True: "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) ",
    False: "WITH n(i) AS (SELECT generate_series(0, {last})) ",
}


def fill(
    database: Database,
    *,
    jobs: int = JOBS,
    prompts_of_a_job: int = PROMPTS_OF_A_JOB,
    prompts_of_a_shard: int = PROMPTS_OF_A_SHARD,
) -> None:
    """Jobs that have ended, by the database's own arithmetic."""
    now = "strftime('%Y-%m-%d %H:%M:%f000', 'now')" if database.is_sqlite else "now()"
    yes = "0" if database.is_sqlite else "false"
    shards_of_a_job = prompts_of_a_job // prompts_of_a_shard
    job, name = f"i / {prompts_of_a_job}", "'old' || {}"
    statements = (
        (
            jobs,
            "INSERT INTO jobs (id, model, status, priority, parameters, source_name,"
            " content_digest, shard_size, total_prompts, created_at)"
            f" SELECT {name.format('i')}, 'tiny-bloom', 'completed', 'normal', '{{}}', 'f', 'd',"
            f" {prompts_of_a_shard}, {prompts_of_a_job}, {now} FROM n",
        ),
        (
            jobs * shards_of_a_job,
            "INSERT INTO shards (job_id, first_index, last_index, status, attempt, crashes,"
            " loading, load_crashes, completed_prompts, failed_prompts, prompt_tokens,"
            " completion_tokens, prefill_seconds, decode_seconds, created_at{more})"
            f" SELECT {name.format(f'(i / {shards_of_a_job})')},"
            f" (i % {shards_of_a_job}) * {prompts_of_a_shard},"
            f" (i % {shards_of_a_job} + 1) * {prompts_of_a_shard} - 1, 'completed', 1, 0, {yes}, 0,"
            f" {prompts_of_a_shard}, 0, 1, 1, 1, 1, {now}{{values}} FROM n",
        ),
        (
            jobs * prompts_of_a_job,
            "INSERT INTO prompts (job_id, prompt_index, prompt)"
            f" SELECT {name.format(f'({job})')}, i % {prompts_of_a_job}, 'a prompt' FROM n",
        ),
        (
            jobs * shards_of_a_job,
            "INSERT INTO micro_batches (job_id, shard_id, worker_id, attempt, device, compute_mode,"
            " rows, prompt_tokens, completion_tokens, prefill_seconds, decode_seconds,"
            " out_of_memory_retries, created_at)"
            f" SELECT {name.format(f'(i / {shards_of_a_job})')}, i + 1, 'w', 1, 'cpu', 'x',"
            f" 8, 1, 1, 1, 1, 0, {now} FROM n",
        ),
        (
            jobs * prompts_of_a_job,
            "INSERT INTO completions (job_id, prompt_index, shard_id, micro_batch_id, text,"
            " prompt_tokens, completion_tokens, queued_seconds, prefill_seconds, decode_seconds,"
            " attempt, worker_id, created_at)"
            f" SELECT {name.format(f'({job})')}, i % {prompts_of_a_job},"
            f" i / {prompts_of_a_shard} + 1, i / {prompts_of_a_shard} + 1, 'a completion', 1, 1, 1,"
            f" 1, 1, 1, 'w', {now} FROM n",
        ),
    )
    for count, statement in statements:
        table = statement.split()[2]
        more, values = required_besides(database, table, statement)
        insert = statement.replace("{more}", more).replace("{values}", values)
        head, _, select = insert.partition(" SELECT ")
        numbers = NUMBERS[database.is_sqlite].format(last=count - 1)
        with database.write() as connection:
            connection.execute(text(f"{head} {numbers} SELECT {select}"))
    if not database.is_sqlite:
        analyse(database)


def required_besides(database: Database, table: str, statement: str) -> tuple[str, str]:
    """Columns that must have a value and are not in the statement yet; later versions add some."""
    from jobs.models import metadata

    named = re.findall(r"\w+", statement[: statement.index(")")].replace("{more", ""))
    missing = [
        column
        for column in metadata.tables[table].columns
        if not column.nullable
        and column.server_default is None
        and not column.primary_key
        and column.name not in named
    ]
    false = "0" if database.is_sqlite else "false"
    values = [false if column.type.python_type is bool else "0" for column in missing]
    return "".join(f", {each.name}" for each in missing), "".join(f", {each}" for each in values)


def analyse_at_work(database: Database) -> None:
    """Statistics of a moment at which a large job waits; then it is over."""
    job_id = submit(database, SHARDS_AT_WORK, shard_size=1)
    analyse(database)
    control.cancel_job(database, job_id)


def analyse(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("ANALYZE"))


SQLITE: dict[str, Callable[[Database], None]] = {
    "sqlite": lambda _: None,
    "sqlite, ANALYZE at rest": analyse,
    "sqlite, ANALYZE at work": analyse_at_work,
}


@pytest.fixture(scope="module", params=[*SQLITE, "postgres"])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    home = tmp_path_factory.mktemp("home")
    if request.param in SQLITE:
        database = open_database(Settings(home=home))
        fill(database)
        SQLITE[request.param](database)
        # A connection reads the statistics when it is opened.
        database.close()
        yield database
        database.close()
        return
    server = request.getfixturevalue("_postgres_server")
    template = request.getfixturevalue("_postgres_template")
    with fresh_database(server, template=template) as url:
        database = open_database(Settings(home=home, database_url=url))
        fill(database)
        yield database
        database.close()


@pytest.fixture
def held(filled: Database) -> Iterator[Claim]:
    """A claim on the first of two shards of the one job that is alive."""
    held = submit_and_claim(filled, 8)
    yield held
    control.cancel_job(filled, held.job_id)


def steps_of(database: Database, run: Callable[[], object]) -> list[tuple[str, str, str]]:
    """Every table that a call's statements read: how, which, and for which statement."""
    statements = statements_of(database, run)
    assert statements, "the call must have asked the database something"
    steps: list[tuple[str, str, str]] = []
    with database.read() as connection:
        for statement, parameters in statements:
            if isinstance(parameters, list):
                parameters = parameters[0]  # noqa: PLW2901 - rows of one insert
            if database.is_sqlite:
                rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                steps += [(*sqlite_step(row.detail), statement) for row in rows]
            else:
                plan = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
                document = plan.scalar()
                found: Any = json.loads(document) if isinstance(document, str) else document
                steps += [(*step, statement) for step in postgres_steps(found[0]["Plan"])]
    return steps


def sqlite_step(detail: str) -> tuple[str, str]:
    """As in "SCAN jobs" and "SEARCH shards USING INDEX ..."; a whole index counts as the table."""
    how, _, rest = detail.partition(" ")
    return how, rest.split()[0] if rest else ""


def postgres_steps(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "Relation Name" in node:
        # An index without a condition is read from end to end, unless a limit stops it.
        whole = node["Node Type"] == "Seq Scan"
        yield "SCAN" if whole else "SEARCH", node["Relation Name"]
    for child in node.get("Plans", ()):
        yield from postgres_steps(child)


HOT: dict[str, Callable[[Database, Claim], object]] = {
    "claim": lambda db, held: try_claim(db, shard_ids(db, held.job_id)[1], worker="another"),
    "model of": lambda db, held: leases.model_of(db, held.shard_id),
    "claim again": lambda db, held: try_claim(db, held.shard_id, worker="another"),
    "pending prompts": leases.pending_prompts,
    "record": lambda db, held: record(db, held, [0, 1]),
    "record twice": lambda db, held: (record(db, held, [2]), record(db, held, [2])),
    "renew": lambda db, held: leases.renew_lease(db, held, 60),
    "set loading": lambda db, held: leases.set_loading(db, held, True),
    "finish": leases.finish_shard,
    "release": leases.release_shard,
    "fail job": lambda db, held: leases.fail_job(db, held, code="c", message="m"),
    "isolate": lambda db, held: recovery.isolate_poison(db, held, 0),
    "next of job": lambda db, held: leases.next_shard_of(db, held.job_id),
    "join": lambda db, held: joining.shard_to_join(db, held.model),
    "join of job": lambda db, held: joining.shard_to_join(db, held.model, job_id=held.job_id),
    "priority waiting": lambda db, held: joining.priority_waiting(db, [held.model]),
    "sweep: seen": lambda db, held: workers.worker_seen(db, "w"),
    "sweep: expired": lambda db, held: recovery.requeue_expired(db),
    "sweep: unpublished": lambda db, held: publishing.take_unpublished(db),
    "sweep: waiting": lambda db, held: publishing.models_waiting(db),
    "sweep: stale": lambda db, held: publishing.take_stale(db, held.model, 60),
    "submit: publish": lambda db, held: publishing.take_unpublished(db, held.job_id),
    "submit: unpublish": lambda db, held: publishing.unpublish(db, [held.shard_id]),
    "status: find": lambda db, held: reading.find_job(db, held.job_id),
    "status: report": lambda db, held: reading.job_report(db, held.job_id),
    "status: steps": lambda db, held: reading.step_report(db, held.job_id),
    "status: model": lambda db, held: reading.model_state(db, held.model),
    "results": lambda db, held: list(result_rows(db, held.job_id)),
    "results: next page": lambda db, held: list(result_rows(db, held.job_id, after=3)),
    "results: failed": lambda db, held: list(result_rows(db, held.job_id, failed_only=True)),
    "list": lambda db, held: reading.job_reports(db, limit=51),
    "cancel": lambda db, held: control.cancel_job(db, held.job_id),
    "submit": lambda db, held: submit(db, 8, idempotency_key=held.job_id),
}


@pytest.mark.parametrize("name", HOT)
def test_no_table_of_other_jobs_is_read(filled: Database, held: Claim, name: str) -> None:
    steps = steps_of(filled, lambda: HOT[name](filled, held))
    assert [step for step in steps if step[0] == "SCAN" and is_harmful(*step)] == []


def is_harmful(_how: str, table: str, statement: str) -> bool:
    """Whether a scan reads rows of other jobs.

    `list` walks the jobs by age until it has enough of them. An INSERT into a
    table with children is said to scan them, which SQLite does only after a
    deferred foreign key was broken, and there is none.
    """
    if table not in LARGE:
        return False
    if table == "jobs" and "ORDER BY jobs.created_at DESC" in statement and "LIMIT" in statement:
        return False
    return not (statement.startswith("INSERT") and table not in statement.split()[2])


def test_retry_reads_its_own_job_only(filled: Database) -> None:
    job_id = submit(filled, 8)
    for each in shard_ids(filled, job_id):
        held = claim(filled, each)
        record(filled, held, [held.first_index, held.last_index], failing=[held.first_index])
        leases.finish_shard(filled, held)
    steps = steps_of(filled, lambda: control.retry_job(filled, job_id))
    assert [step for step in steps if step[0] == "SCAN" and is_harmful(*step)] == []
    control.cancel_job(filled, job_id)


def test_a_page_in_the_middle_of_a_large_job_reads_its_own_rows_only(
    home: Path, postgres_url: str
) -> None:
    # Given a job that is many pages, before and behind the one that is asked for.
    database = open_database(Settings(home=home, database_url=postgres_url))
    fill(database, jobs=1, prompts_of_a_job=30_000, prompts_of_a_shard=500)

    (statement, parameters), *_ = statements_of(
        database, lambda: next(result_rows(database, "old0", after=20_000))
    )
    with database.read() as connection:
        plan = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
        ).scalar_one()
    database.close()

    assert max(rows_of(plan[0]["Plan"])) == results.ROWS_PER_PAGE


def rows_of(node: dict[str, Any]) -> Iterator[float]:
    """The rows that every step of a plan gave, all its repetitions together."""
    yield node["Actual Rows"] * node["Actual Loops"]
    for child in node.get("Plans", ()):
        yield from rows_of(child)


def test_a_scan_is_noticed(filled: Database) -> None:
    # So that the tests above can fail: nothing but a scan finds a prompt by its text.
    def search() -> None:
        with filled.read() as connection:
            connection.execute(select(prompts).where(prompts.c.prompt == "nobody's")).all()

    steps = steps_of(filled, search)
    assert [step for step in steps if step[0] == "SCAN" and is_harmful(*step)] != []
