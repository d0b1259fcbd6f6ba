"""Prepares a checkpoint and reports the anonymous memory that took, as JSON.

Run as a program of its own: `python -m tests.prepare_memory CHECKPOINT STORES`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.peak_memory import PeakMemory, anonymous_bytes
from tests.stores import prepare
from tests.tiny_checkpoints import save_random_checkpoint


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
