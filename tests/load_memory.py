"""Loads a store by a placement and reports the anonymous memory that took, as JSON.

Run as a program of its own: `python -m tests.load_memory CHECKPOINT STORES TIERS`,
with TIERS as JSON, a tier for every block.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from engine.plan.plan import Tier
from engine.weights.loader import load_store
from tests.peak_memory import PeakMemory, anonymous_bytes
from tests.stores import CPU, ignore, never, prepare


def main(checkpoint: Path, stores: Path, tiers: dict[str, Tier]) -> None:
    store = prepare(checkpoint, stores, dtype=torch.float32)
    baseline = anonymous_bytes()
    peak = PeakMemory()
    with load_store(store, tiers, CPU, on_progress=ignore, should_stop=never) as loaded:
        report = {
            "baseline_bytes": baseline,
            "ram_bytes": loaded.bytes_at("ram"),
            "resident_bytes": loaded.bytes_at("resident"),
            "peak_bytes": peak.stop(),
        }
    report["closed_bytes"] = anonymous_bytes()
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
