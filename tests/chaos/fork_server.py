"""Forks commands and workers off a process that has imported everything they need.

    python -m tests.chaos.fork_server SOCKET

Nine tenths of a command's half second of CPU are Python and its imports, and a
hundred runs of every fault take some twenty thousand commands. A fork is the same
main function in a process of its own, with its own connections, killed like any
other. The server answers each connection with a process id and, at the end, an
exit code.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.app.log",
    "celery.apps.worker",
    "celery.backends.base",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.contrib.migrate",
    "celery.events.receiver",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.consumer.delayed_delivery",
    "celery.worker.strategy",
    "cli.commands.cancel",
    "cli.failures",
    "cli.commands.list",
    "cli.main",
    "cli.commands.results",
    "cli.commands.retry",
    "cli.commands.start_worker",
    "cli.commands.status",
    "cli.commands.submit",
    "jobs.prompts.custom_ids",
    "kombu.transport.redis",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "tests.chaos.traced_worker",
    "worker.queue.celery_app",
    "engine.null",
)


class ForkServer:
    """Serves until its standard input ends; in a fork, serve() returns what to be."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._waiting: dict[int, socket.socket] = {}
        self._woken, self._waker = socket.socketpair()
        for each in (self._woken, self._waker):
            each.setblocking(False)

    def serve(self) -> dict[str, Any] | None:
        """The order that this process is forked for; None at the end, in the server."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker.fileno())
        with selectors.DefaultSelector() as selector:
            for source in (self._listener, self._woken, sys.stdin):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._woken in ready:
                    self._reap()
                if self._listener in ready and (order := self._fork()) is not None:
                    return order
                if sys.stdin in ready:
                    self._end()
                    return None

    def _fork(self) -> dict[str, Any] | None:
        connection, _ = self._listener.accept()
        with connection.makefile("rb") as lines:
            order: dict[str, Any] = json.loads(lines.readline())
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for each in (self._listener, self._woken, self._waker, connection):
                each.close()
            for each in self._waiting.values():
                each.close()
            return order
        self._waiting[pid] = connection
        connection.sendall(f"{pid}\n".encode())
        return None

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with self._waiting.pop(ended[0]) as connection, suppress(OSError):
                    code = os.waitstatus_to_exitcode(ended[1])
                    connection.sendall(f"{code}\n".encode())

    def _end(self) -> None:
        for pid in self._waiting:
            os.kill(pid, signal.SIGKILL)


def become(order: dict[str, Any]) -> None:
    """Be the ordered command, as if started with these arguments and this environment."""
    os.environ.clear()
    os.environ.update(order["environment"])
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    for number, name in ((1, "output"), (2, "notes")):
        with Path(order[name]).open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["tgp-jobs", *order["arguments"]]
    if order["traced"]:
        from tests.chaos.traced_worker import main
    else:
        from cli.main import main
    main()


def end_at_once(run: Callable[[], None]) -> NoReturn:
    """Run and exit as Python does, without taking down what was imported.

    Freeing a hundred thousand objects that are shared with the server would copy
    them all first, and cost more than most commands.
    """
    code: object = 0
    try:
        run()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    for name in MODULES:
        import_module(name)
    # What is there now is never garbage, and stays shared with the forks.
    gc.collect()
    gc.freeze()
    order = ForkServer(Path(sys.argv[1])).serve()
    if order is not None:
        end_at_once(lambda: become(order))


if __name__ == "__main__":
    main()
