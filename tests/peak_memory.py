"""The most anonymous memory a process held for a while: what the kernel cannot drop.

Pages of mapped files are not in it. This imports nothing but the standard
library, so that a process can take its baseline when it likes.
"""

from __future__ import annotations

import threading
from pathlib import Path

SECONDS_BETWEEN_SAMPLES = 0.002


class PeakMemory:
    """Samples this process' anonymous memory from another thread."""

    def __init__(self) -> None:
        self.bytes = anonymous_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._is_over.set()
        self._thread.join()
        return self.bytes

    def _sample(self) -> None:
        while not self._is_over.wait(SECONDS_BETWEEN_SAMPLES):
            self.bytes = max(self.bytes, anonymous_bytes())


def anonymous_bytes(process: int | str = "self") -> int:
    """Of a process, by its id."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say RssAnon")
