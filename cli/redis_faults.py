"""What is left of an embedded Redis: a socket nobody listens at, a server nobody uses.

worker/queue/embedded_redis.py takes the same two locks: `start.lock` while it looks
and starts, `users.lock`, shared, for as long as a worker uses the server.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from cli.faults import Fault
from cli.publish import is_listening
from jobs.settings import Settings

ANSWER_SECONDS = 5.0
END_SECONDS = 10.0


def redis_faults(settings: Settings) -> Iterator[Fault]:
    """What is wrong with the state directory's Redis."""
    if not settings.redis_is_embedded or not settings.redis_socket.exists():
        return
    path = settings.redis_socket
    if not is_listening(path):
        yield Fault(
            kind="stale_redis",
            subject=str(path),
            found="a socket whose server is gone",
            mend="remove it",
            repair=partial(_remove_socket, settings),
        )
    elif not _is_in_use(settings):
        yield Fault(
            kind="stale_redis",
            subject=str(path),
            found=f"a Redis that no worker uses, process {_server_process(path)}",
            mend="stop it; its messages stay on disk for the next worker",
            repair=partial(_stop_server, settings),
        )


def _is_in_use(settings: Settings) -> bool:
    with _unused(settings) as is_unused:
        return not is_unused


@contextmanager
def _unused(settings: Settings) -> Iterator[bool]:
    """Whether no worker uses the server or is about to, and none begins to meanwhile."""
    folder = settings.home / "redis"
    with ExitStack() as files:
        for name in ("start.lock", "users.lock"):
            try:
                # Not created: without them no worker has been here.
                file = files.enter_context((folder / name).open("r+"))
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
        yield True


def _remove_socket(settings: Settings) -> bool:
    with _unused(settings) as is_unused:
        if not is_unused or is_listening(settings.redis_socket):
            return False
        settings.redis_socket.unlink(missing_ok=True)
        return True


def _stop_server(settings: Settings) -> bool:
    with _unused(settings) as is_unused:
        path = settings.redis_socket
        if not is_unused or not is_listening(path):
            return False
        process = _server_process(path)
        if not _is_redis(process):
            raise OSError(f"process {process} listens at {path} and is no redis-server")
        if not _shut_down(path):
            # Stopped or stuck: what it has taken is in the append-only file.
            os.kill(process, signal.SIGKILL)
        _wait_for_end(path)
        path.unlink(missing_ok=True)
        return True


def _shut_down(path: Path) -> bool:
    """Ask the server to end; False if it does not answer."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = redis.Redis(
        unix_socket_path=str(path),
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), retries=0),
    )
    try:
        client.shutdown(save=False)
    except redis.RedisError:
        return False
    finally:
        client.close()
    return True


def _server_process(path: Path) -> int:
    """The process that listens at a Unix socket, by the kernel's word."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_SECONDS)
        client.connect(str(path))
        # struct ucred: process, user, group
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def _is_redis(process: int) -> bool:
    with suppress(OSError):
        return b"redis-server" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


def _wait_for_end(path: Path) -> None:
    deadline = time.monotonic() + END_SECONDS
    while is_listening(path):
        if time.monotonic() > deadline:
            raise OSError(f"the Redis at {path} does not end")
        time.sleep(0.05)
