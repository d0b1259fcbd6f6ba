"""Runs contestants one after another, each in a process of its own, and shows them in a table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.offload.contestant import Outcome, Run
from benchmarks.offload.measure import Steps

ROOT = Path(__file__).resolve().parents[2]
MIB, GB = 2**20, 10**9
# Of what a failed process said, its last words.
_LAST_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class Speed:
    """An outcome as rates.

    Attributes:
        prompt_seconds: To the first token.
        step_seconds: Of one later token of every row, without the dropping of pages.
        tokens_per_second: Of the later tokens.
        overall_tokens_per_second: With the prompts.
        streamed_bytes_per_second: In the later steps.
        wait_share: Of their time, spent waiting for weights.
        processor_seconds: Of each later step; less than its time on a box that
            is shared or waits, more where several threads work.
    """

    prompt_seconds: float
    step_seconds: float
    tokens_per_second: float
    overall_tokens_per_second: float
    streamed_bytes_per_second: float
    wait_share: float
    processor_seconds: float


def speed_of(outcome: Outcome) -> Speed:
    steps = outcome.steps
    # Pages were dropped in each pass.
    dropping = outcome.dropping_seconds / (1 + len(steps.step_seconds))
    seconds = sum(steps.step_seconds) - dropping * len(steps.step_seconds)
    prompt_seconds = steps.prompt_seconds - dropping
    return Speed(
        prompt_seconds=prompt_seconds,
        step_seconds=seconds / len(steps.step_seconds),
        tokens_per_second=(steps.tokens - steps.first_tokens) / seconds,
        overall_tokens_per_second=steps.tokens / (prompt_seconds + seconds),
        streamed_bytes_per_second=steps.streamed_bytes / seconds,
        wait_share=steps.wait_seconds / seconds,
        processor_seconds=steps.processor_seconds / len(steps.step_seconds),
    )


def in_own_process(run: Run) -> Outcome | str:
    """The outcome, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.offload.contestant", json.dumps(asdict(run))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"]
        return lines[-1][-_LAST_CHARACTERS:]
    # Libraries may have printed before it.
    document = json.loads(ended.stdout.strip().splitlines()[-1])
    return Outcome(**{**document, "steps": Steps(**document["steps"])})


def contest(runs: Mapping[str, Run]) -> dict[str, Speed]:
    """Run each, and show it; the speeds of those that came to their end, by title."""
    speeds = {}
    columns = (
        *("tok/s", "s/step", "CPU s", "prompts s", "all tok/s"),
        *("GB/s", "waits", "RAM MiB", "mapped", "GPU MiB"),
    )
    print(f"{'':34}" + "".join(f"{column:>10}" for column in columns), flush=True)
    for title, run in runs.items():
        outcome = in_own_process(run)
        if isinstance(outcome, str):
            print(f"{title:34}  FAILED: {outcome}", flush=True)
            continue
        speed = speeds[title] = speed_of(outcome)
        print(f"{title:34}{_figures(speed, outcome)}   {outcome.placement}", flush=True)
        if outcome.link_bytes_per_second:
            share = speed.streamed_bytes_per_second / outcome.link_bytes_per_second
            link = f"{outcome.link_bytes_per_second / GB:.1f} GB/s"
            print(f"{'':34}  pinned link {link}, used to {share:.1%}", flush=True)
    return speeds


def show_ratios(speeds: Mapping[str, Speed], ours: str, theirs: Mapping[str, float]) -> None:
    """How many times as many tokens a second, beside what was wanted."""
    for other, wanted in theirs.items():
        if ours in speeds and other in speeds:
            decode = speeds[ours].tokens_per_second / speeds[other].tokens_per_second
            overall = (
                speeds[ours].overall_tokens_per_second / speeds[other].overall_tokens_per_second
            )
            print(
                f"{ours} / {other}: {decode:.2f} x, with the prompts {overall:.2f} x "
                f"(wanted: {wanted:g} x)",
                flush=True,
            )


def _figures(speed: Speed, outcome: Outcome) -> str:
    return (
        f"{speed.tokens_per_second:10.2f}{speed.step_seconds:10.3f}{speed.processor_seconds:10.3f}"
        f"{speed.prompt_seconds:10.2f}{speed.overall_tokens_per_second:10.2f}"
        f"{speed.streamed_bytes_per_second / GB:10.2f}"
        f"{speed.wait_share:10.0%}{outcome.peak_bytes / MIB:10.0f}"
        f"{outcome.mapped_bytes / MIB:10.0f}"
        f"{outcome.gpu_peak_bytes / MIB:10.0f}"
    )
