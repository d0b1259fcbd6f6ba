"""A worker that swaps models for days holds one of them, and nothing of the others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
ROUNDS = 4


def test_models_that_come_and_go_leave_no_memory_behind(tmp_path: Path) -> None:
    # given a process that has loaded, used and closed each model in each way once
    run = subprocess.run(
        [sys.executable, "-m", "tests.swap_memory", tmp_path, str(ROUNDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["streamed_bytes"] > 0, "half of the models must have been streamed"
    # when it does so again and again
    after_first, *_, after_last = report["anonymous_bytes"]
    # then it grows by less than one model weighs, rather than by the weights of all rounds
    ceiling = 2 * MIB
    assert (ROUNDS - 1) * report["weight_bytes_of_a_round"] > 10 * ceiling
    assert after_last - after_first < ceiling
