"""What is fuzzed: each target takes any bytes and raises only where we have a bug.

Two drivers share them: hypothesis in `make test`, and a coverage-guided fuzzer
in `make fuzz`. A refusal in our own words is fine; anything else is not.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from jobs.catalogue import load_catalogue
from jobs.database import Database, open_database
from jobs.dispatch import TASK_NAME, new_connection
from jobs.errors import PromptFileError, SettingsError, TgpError
from jobs.prompts.file import PromptFile
from jobs.settings import Settings, load_settings
from jobs.store.leases import claim_shard
from jobs.wording import text_problem
from tests.ledger import submit

Target = Callable[[bytes], None]


@cache
def scratch() -> Path:
    """A folder of this process's own; the tests' temporary folder outlives it."""
    return Path(tempfile.mkdtemp(prefix="tgp-fuzz-"))


def prompt_file(content: bytes, file_format: str) -> None:
    """A file is refused with its problems, or gives sound requests twice over."""
    with PromptFile("-", file_format=file_format, stdin=io.BytesIO(content)) as file:
        try:
            summary = file.validate()
        except PromptFileError as refusal:
            refusal.message.encode()
            return
        requests = list(file.requests())
    assert len(requests) == summary.prompt_count
    for request in requests:
        assert (request.prompt is None) != (request.messages is None)
        # What SQLite and Postgres would choke on must have been refused.
        assert request.prompt is None or text_problem(request.prompt) is None
        assert request.custom_id is None or text_problem(request.custom_id) is None
        json.dumps([request.messages, request.parameters], allow_nan=False).encode()


def jsonl(content: bytes) -> None:
    prompt_file(content, "jsonl")


def csv(content: bytes) -> None:
    prompt_file(content, "csv")


def text(content: bytes) -> None:
    prompt_file(content, "txt")


def gzipped(content: bytes) -> None:
    """As it is, and as the contents of a faultless archive."""
    prompt_file(b"\x1f\x8b" + content, "jsonl")
    prompt_file(gzip.compress(content, 1), "csv")


def settings_file(content: bytes) -> None:
    """config.toml: refused, or its settings can be used."""
    home = scratch() / "settings"
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_bytes(content)
    with suppress(SettingsError):
        use(load_settings({"home": str(home)}, environ={}))


def settings_environment(content: bytes) -> None:
    """TGP_ variables, NAME=value separated by NUL as the kernel keeps them."""
    pairs = (each.partition(b"=") for each in content.split(b"\0"))
    # As Python reads an environment: what is no UTF-8 becomes lone surrogates.
    environ = {
        name.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for name, _, value in pairs
    }
    home = scratch() / "environment"
    home.mkdir(exist_ok=True)
    with suppress(SettingsError):
        use(load_settings({"home": str(home)}, environ=environ))


def use(settings: Settings) -> None:
    """Build from accepted settings what every command builds, without connecting."""
    new_connection(settings).as_uri()
    database = Database(settings.effective_database_url)
    database.shown_url.encode("utf-8", "backslashreplace")
    database.close()


def catalogue(content: bytes) -> None:
    """catalogue.toml: refused, or every entry is whole."""
    home = scratch() / "catalogue"
    home.mkdir(exist_ok=True)
    (home / "catalogue.toml").write_bytes(content)
    try:
        models = load_catalogue(Settings(home=home))
    except TgpError as refusal:
        refusal.message.encode("utf-8", "backslashreplace")
        return
    for alias, model in models.items():
        assert "/" not in alias
        assert model.location
        assert model.folder is None or model.folder.is_absolute()


def store_header(content: bytes) -> None:
    from tests.fuzz import stores  # brings torch, which takes seconds

    stores.header(content)


def store_manifest(content: bytes) -> None:
    from tests.fuzz import stores

    stores.manifest(content)


def store_layout(content: bytes) -> None:
    from tests.fuzz import stores

    stores.layout(content)


def message(content: bytes) -> None:
    """A message's body, [args, kwargs, embedded], as Celery's client protocol has it.

    It runs a shard's claim or is dropped; it never raises, which Celery would
    log as a crash of ours.
    """
    try:
        args, kwargs = json.loads(content)[:2]
    except (ValueError, TypeError, KeyError, RecursionError):
        return  # Celery's own part, which tests/integration tries with a real worker
    if isinstance(args, list) and isinstance(kwargs, dict):
        message_task()(*args, **kwargs)


@cache
def message_task() -> Callable[..., object]:
    from celery import Celery

    from worker.queue.tasks import register_task
    from worker.shards.held_shard import Outcome

    ledger = message_ledger()

    def run(shard_id: int) -> Outcome:
        assert shard_id < 2**31, "Postgres refuses it, as SQLite does later"
        claim_shard(ledger, shard_id, worker_id="w", process=1, lease_seconds=60)
        return "not ours"

    app = Celery("fuzz", broker="memory://", set_as_current=False)
    register_task(app, run)
    task: Callable[..., object] = app.tasks[TASK_NAME]
    return task


@cache
def message_ledger() -> Database:
    ledger = open_database(Settings(home=scratch() / "ledger"))
    submit(ledger, 8)
    return ledger


TARGETS: Mapping[str, Target] = {
    "jsonl": jsonl,
    "csv": csv,
    "text": text,
    "gzip": gzipped,
    "settings_file": settings_file,
    "settings_environment": settings_environment,
    "catalogue": catalogue,
    "store_header": store_header,
    "store_manifest": store_manifest,
    "store_layout": store_layout,
    "message": message,
}
