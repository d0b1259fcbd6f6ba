"""Prepares a checkpoint and reports the anonymous memory that took, as JSON.

Run as a program of its own: `python -m tests.prepare_memory CHECKPOINT STORES`.
Anonymous memory is what the kernel cannot drop: pages of mapped files are not in it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from tests.stores import prepare
from tests.tiny_checkpoints import save_random_checkpoint

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


def anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say RssAnon")


def main(checkpoint: Path, stores: Path) -> None:
    # The baseline holds the libraries, which are imported as they are first used.
    tiny = save_random_checkpoint("tiny-bloom", stores / "warm-up-checkpoint")
    prepare(tiny, stores / "warm-up")
    baseline = anonymous_bytes()
    peak = PeakMemory()
    started = time.perf_counter()
    store = prepare(checkpoint, stores / "stores")
    seconds = time.perf_counter() - started
    report = {
        "baseline_bytes": baseline,
        "peak_bytes": peak.stop(),
        "store_bytes": store.bytes,
        "seconds": seconds,
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
