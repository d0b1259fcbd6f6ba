"""A TCP proxy in front of a Unix socket that is slow when told, and cuts connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK_BYTES = 65_536


class CuttingProxy:
    """Passes bytes on, each chunk `delay_seconds` late; runs in a thread of its own."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: asyncio.Task[None] | None = None
        self.delay_seconds = 0.0
        self.port = 0

    def cut(self) -> None:
        """Break every connection there is; new ones are taken."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in self._writers:
            # Reset rather than closed: the other side must not see a polite end.
            writer.transport.abort()

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await server.serve_forever()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(str(self._target))
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        finally:
            self._writers -= pair

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                await asyncio.sleep(self.delay_seconds)
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()

    def run(self, ready: threading.Event) -> None:
        self._serving = self._loop.create_task(self._serve(ready))
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self) -> None:
        assert self._serving is not None
        self._loop.call_soon_threadsafe(self._serving.cancel)


@contextmanager
def cutting_proxy(target: Path) -> Iterator[CuttingProxy]:
    """A running proxy in front of the socket."""
    proxy = CuttingProxy(target)
    ready = threading.Event()
    thread = threading.Thread(target=proxy.run, args=(ready,), name="cutting-proxy", daemon=True)
    thread.start()
    assert ready.wait(10), "the proxy does not listen"
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(10)
