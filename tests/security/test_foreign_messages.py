"""Whatever lies in a queue, no code of it runs, and the worker goes on.

Each message here is put into a real Redis as its bytes, for a real worker.
Before they were guarded against, several ended the worker, which put them back
first, so that the next worker ended as well.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from jobs.dispatch import TASK_NAME, queue_name
from tests.acceptance.box import Box, wait_until
from tests.services import RealRedis

pytestmark = pytest.mark.acceptance

CATALOGUE = '[models.null]\nengine = "null"\n'
QUEUE = queue_name("null")
CALL = b"[[1], {}, {}]"


class RunsCode:
    """Pickled, it makes a folder for whoever reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def envelope(
    body: object = CALL,
    *,
    kind: str = "application/json",
    encoding: str = "utf-8",
    headers: Any = None,
    **properties: Any,
) -> str:
    """A message as kombu keeps it in Redis."""
    shown = base64.b64encode(body).decode() if isinstance(body, bytes) else body
    sent_to = {"exchange": "", "routing_key": QUEUE}
    own = {"body_encoding": "base64", "delivery_tag": os.urandom(8).hex(), "delivery_info": sent_to}
    return json.dumps(
        {
            "body": shown,
            "content-type": kind,
            "content-encoding": encoding,
            "headers": headers_of() if headers is None else headers,
            "properties": {k: v for k, v in (own | properties).items() if v is not None},
        }
    )


def headers_of(**changes: Any) -> dict[str, Any]:
    return {"lang": "py", "task": TASK_NAME, "id": "x", "root_id": "x"} | changes


def messages(owned: Path) -> dict[str, str | bytes]:
    """Messages of other people, by what is wrong with each."""
    code = pickle.dumps(([RunsCode(owned)], {}, {}))
    yaml = f"!!python/object/apply:os.mkdir ['{owned}']".encode()
    tricks = {"callbacks": [{"task": "celery.backend_cleanup"}], "chain": [1], "errbacks": "x"}
    return {
        "a pickle": envelope(code, kind="application/x-python-serialize", encoding="binary"),
        "a pickle that says it is JSON": envelope(code),
        "a pickle in the first protocol": envelope(
            code, kind="application/x-python-serialize", encoding="binary", headers={}
        ),
        "yaml": envelope(yaml, kind="application/x-yaml"),
        "an unknown kind": envelope(kind="application/zzz"),
        "another task": envelope(headers=headers_of(task="os.system")),
        "a task that is a list": envelope(headers=headers_of(task=[1])),
        "no headers": envelope(headers={}),
        "headers that are a list": envelope(headers=[]),
        "no id": envelope(headers={"task": TASK_NAME}),
        "an id that is a list": envelope(headers=headers_of(id=[1])),
        "packed wrongly": envelope(headers=headers_of(compression="application/x-gzip")),
        "packed in an unknown way": envelope(headers=headers_of(compression="zz")),
        "packed to a thousandth": envelope(
            zlib.compress(b" " * 2**28), headers=headers_of(compression="application/x-gzip")
        ),
        "a string": envelope(b'"x"'),
        "null": envelope(b"null"),
        "nothing": envelope(b""),
        "numbers": envelope(b"[1, 2, 3]"),
        "no UTF-8": envelope(b"\xff\xfe"),
        "nested": envelope(b"[" * 100_000),
        "arguments by name": envelope(b'[[], {"shard_id": 1}, {}]'),
        "a number too large": envelope(b"[[2147483648], {}, {}]"),
        "no number": envelope(b'[["1"], {}, {}]'),
        "the first protocol": envelope(json.dumps({"task": TASK_NAME, "args": [1]}).encode()),
        "no JSON": "garbage",
        "no text": b"\xff\x00\x80",
        "a bare list": "[]",
        "a bare object": "{}",
        "a bare null": "null",
        "no properties": json.dumps({"body": "", "headers": {}}),
        "no tag": envelope(delivery_tag=None),
        "a tag that is a list": envelope(delivery_tag=[1]),
        "no word of where it was sent": envelope(delivery_info=None),
        "a body that is a number": envelope(5),
        "no base64": envelope("*"),
        "an unknown coding": envelope(body_encoding="zz"),
        # These are a shard's id, with more: that is left out. None has that id.
        "a date that is none": envelope(headers=headers_of(eta="garbage")),
        "an end that is none": envelope(headers=headers_of(expires="garbage")),
        "an end that is a list": envelope(headers=headers_of(expires=[])),
        "limits that are none": envelope(headers=headers_of(timelimit="zz", retries="a")),
        "tasks to run next": envelope(json.dumps([[1], {}, tricks]).encode()),
        "a priority that is none": envelope(priority="x"),
        "a reply wanted": envelope(reply_to={}, correlation_id=[]),
        "an unknown encoding": envelope(encoding="zzz"),
    }


@pytest.fixture
def guarded(short_folder: Path, real_redis: RealRedis) -> Box:
    box = Box(short_folder, {"TGP_REDIS_URL": real_redis.url})
    box.catalogue(CATALOGUE)
    return box


def test_foreign_messages_are_told_and_dropped(guarded: Box, real_redis: RealRedis) -> None:
    owned = guarded.home / "owned"
    foreign = messages(owned)
    worker = guarded.worker("--model", "null")
    try:
        with real_redis.client() as client:
            client.lpush(QUEUE, *foreign.values())
            wait_until(
                lambda: worker.process.poll() is not None or not client.llen(QUEUE),
                "an empty queue",
            )
            job_id = guarded.submit(guarded.prompts(["a b c"]), "null")
            assert guarded.wait_for_end(job_id)["counts"]["completed"] == 1
            assert (client.llen(QUEUE), client.hlen("unacked")) == (0, 0)
        assert worker.process.poll() is None
        assert not owned.exists()
        told = worker.log.count("message_dropped") + worker.log.count("shard_not_claimed")
        assert told == len(foreign)
        assert "Traceback" not in worker.log
        assert worker.log.count("Connected to") == 1
    finally:
        guarded.close()


def test_a_foreign_word_to_all_workers_is_refused(guarded: Box, real_redis: RealRedis) -> None:
    """The channel for Celery's own commands, which every worker listens to."""
    owned = guarded.home / "owned"
    worker = guarded.worker("--model", "null")
    try:
        code = pickle.dumps({"method": "ping", "arguments": RunsCode(owned)})
        kind = {"kind": "application/x-python-serialize", "encoding": "binary"}
        with real_redis.client() as client:
            for word in (envelope(code, **kind), envelope(code), "garbage", "[]", "{}", b"\xff"):
                assert client.publish("/0.celery.pidbox", word) >= 1
        job_id = guarded.submit(guarded.prompts(["a b c"]), "null")
        assert guarded.wait_for_end(job_id)["counts"]["completed"] == 1
        assert worker.process.poll() is None
        assert not owned.exists()
    finally:
        guarded.close()
