"""Loads the four small models in turn, over and over, and reports the memory after each round.

Run as a program of its own: `python -m tests.swap_memory STORES ROUNDS`. Each
model is loaded twice in a round, resident and streamed from disk, generates,
and is closed. Anonymous memory, in bytes, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from engine.interface import RequestList
from tests.integration.engine_runs import never, request
from tests.integration.test_streamed_engine import engine_for, least_bytes
from tests.peak_memory import anonymous_bytes
from tests.tiny_checkpoints import ALIASES, checkpoint_folder

REQUESTS = [request(key, "the queue holds " * (key + 1)) for key in range(3)]


def main(stores: Path, rounds: int) -> None:
    folders = {alias: checkpoint_folder(alias, stores / alias) for alias in ALIASES}
    tight = {alias: least_bytes(folder) + 1024 for alias, folder in folders.items()}
    after_rounds: list[int] = []
    streamed_bytes = weight_bytes = 0
    for _ in range(rounds):
        for alias, folder in folders.items():
            for options in ({}, {"cpu_bytes": tight[alias], "micro_batch_rows": 3}):
                engine = engine_for(folder, stores, **options)
                weight_bytes += engine.model.weight_bytes
                for batch in engine.generate(RequestList(REQUESTS), should_stop=never):
                    streamed_bytes += batch.streamed_bytes
                engine.close()
                del engine
        after_rounds.append(anonymous_bytes())
    report = {
        "anonymous_bytes": after_rounds,
        "streamed_bytes": streamed_bytes,
        "weight_bytes_of_a_round": weight_bytes // rounds,
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
