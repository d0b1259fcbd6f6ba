"""What it gains to refill a batch: continuous against static batching.

    python -m benchmarks.batching [--prompts 512] [--rows 16] [--hidden 1024] [--layers 8]
                                  [--family gpt-neox|bloom|cerebras|flan]
                                  [--device cpu|cuda] [--threads 1] [--streamed]
    python -m benchmarks.batching --uniform [--runs 6] [--hidden 1024] [--layers 8] ...

Side by side, on one random model that is wholly resident, or whose int8 layers
are streamed in every step (--streamed): our decode loop, and static
micro-batches through transformers' generate(), longest prompts first. Prompts
and completions have log-normal lengths (see PROMPT and COMPLETION), and each
completion's length is forced. Both have the same rows; ours has for its cache
the bytes that the largest static micro-batch takes.

Then a batch that nobody can refill (see benchmarks.uniform_batch), where the
question is what a step costs beside its model. --uniform runs that alone, and
for all families.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.batching_models import (
    FAMILIES,
    Maker,
    description,
    forced_request,
    maker_of,
)
from benchmarks.uniform_batch import UniformBatch, show_uniform, show_uniform_head
from engine.decode.engine import DecodeEngine
from engine.interface import Engine, GenerationRequest, RequestFeed, RequestList, Window
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits


@dataclass(frozen=True)
class Lengths:
    """Log-normal: exp(normal(log(median), sigma)), cut to between least and most."""

    median: float
    sigma: float
    least: int
    most: int

    def draw(self, chance: random.Random) -> int:
        drawn = chance.lognormvariate(0.0, self.sigma) * self.median
        return round(min(max(drawn, self.least), self.most))


PROMPT = Lengths(median=48, sigma=0.6, least=8, most=256)
COMPLETION = Lengths(median=40, sigma=0.9, least=4, most=256)


@dataclass(frozen=True)
class Run:
    """One engine's run; share is of rows alive in its steps, of all its rows."""

    seconds: float
    cpu_seconds: float
    tokens: int
    steps: int
    share: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="tgp-bench-") as folder:
        if not arguments.uniform:
            family = arguments.family or FAMILIES[0]
            compare(maker_of(family, arguments, Path(folder)), family, arguments)
        if not arguments.streamed:
            compare_uniform(arguments, Path(folder))


def compare(maker: Maker, family: str, arguments: argparse.Namespace) -> None:
    requests = log_normal_requests(arguments.prompts, arguments.seed)
    show_load(requests, family, arguments)
    static = run_static(maker(), requests, arguments.rows)
    cache_bytes = largest_batch_bytes(requests, maker(), arguments.rows)
    continuous = run_continuous(maker(), requests, arguments.rows, cache_bytes)
    show("static micro-batches", static)
    show("continuous", continuous)
    faster = continuous.tokens_per_second / static.tokens_per_second
    cheaper = static.cpu_seconds / continuous.cpu_seconds
    print(f"continuous / static: {faster:.2f} x as fast, {cheaper:.2f} x by CPU seconds")


def compare_uniform(arguments: argparse.Namespace, folder: Path) -> None:
    """Our loop against one call of generate(): of one family, or of all of them."""
    rows, new_tokens = arguments.rows, arguments.uniform_tokens
    show_uniform_head(rows, new_tokens, arguments.runs)
    every = FAMILIES if arguments.uniform else FAMILIES[:1]
    for family in (arguments.family,) if arguments.family else every:
        model = maker_of(family, arguments, folder)()
        show_uniform(family, UniformBatch(model, rows, new_tokens).measured(arguments.runs))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Continuous against static batching.")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--family", choices=FAMILIES, help="default: gpt-neox; --uniform: all")
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--uniform", action="store_true", help="only the uniform batch")
    parser.add_argument("--uniform-tokens", type=int, default=64, help="new ones, of each row")
    parser.add_argument("--runs", type=int, default=6, help="of the uniform batch; an even number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--streamed", action="store_true", help="int8 layers from disk (GPU: RAM)")
    return parser.parse_args()


def log_normal_requests(count: int, seed: int) -> list[GenerationRequest]:
    chance = random.Random(seed)
    return [
        forced_request(key, PROMPT.draw(chance), COMPLETION.draw(chance)) for key in range(count)
    ]


class StaticBatches:
    """The same loop, given so many rows at a time: none joins before all are finished."""

    def __init__(self, engine: DecodeEngine, rows: int) -> None:
        self._engine, self._rows = engine, rows
        self.model = engine.model

    def generate(self, feed: RequestFeed, *, should_stop: Callable[[], bool]) -> Iterator[Window]:
        requests = sorted(feed.take(2**31), key=lambda each: -len(str(each.prompt)))
        for first in range(0, len(requests), self._rows):
            some = RequestList(requests[first : first + self._rows])
            yield from self._engine.generate(some, should_stop=should_stop)

    def close(self) -> None:
        self._engine.close()


def run_static(model: Int8Model, requests: Sequence[GenerationRequest], rows: int) -> Run:
    limits = BatchLimits(rows=rows, encoded_rows=rows)
    engine = StaticBatches(DecodeEngine(model, description(model), limits=limits), rows)
    return timed(engine, requests, rows, lambda batch: batch.steps)


def run_continuous(
    model: Int8Model, requests: Sequence[GenerationRequest], rows: int, cache_bytes: int | None
) -> Run:
    limits = BatchLimits(rows=rows, cache_bytes=cache_bytes, encoded_rows=4 * rows)
    engine = DecodeEngine(model, description(model), limits=limits)
    return timed(engine, requests, rows, lambda batch: batch.steps)


def timed(
    engine: Engine,
    requests: Sequence[GenerationRequest],
    rows: int,
    steps_of: Callable[[Window], int],
) -> Run:
    """A whole run, after a short one that warms up."""
    list(engine.generate(RequestList([forced_request(0, 8, 2)]), should_stop=never))
    started, cpu_started = time.perf_counter(), time.process_time()
    batches = list(engine.generate(RequestList(requests), should_stop=never))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    engine.close()
    tokens = sum(batch.completion_tokens for batch in batches)
    steps = sum(steps_of(batch) for batch in batches)
    return Run(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        tokens=tokens,
        steps=steps,
        share=tokens / (steps * rows),
    )


def largest_batch_bytes(requests: Sequence[GenerationRequest], model: Int8Model, rows: int) -> int:
    """KV cache of the static micro-batch that takes most: its longest prompt and completion."""
    config = model.model.config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    size = getattr(config, "d_kv", None) or config.hidden_size // heads
    token_bytes = int(2 * layers * heads * size * model.model.dtype.itemsize)
    ordered = sorted(requests, key=lambda each: -len(each.prompt))
    batches = [ordered[first : first + rows] for first in range(0, len(ordered), rows)]
    return max(
        rows
        * token_bytes
        * (
            max(len(each.prompt) for each in batch)
            + max(each.parameters.max_new_tokens for each in batch)
        )
        for batch in batches
    )


def show_load(
    requests: Sequence[GenerationRequest], family: str, arguments: argparse.Namespace
) -> None:
    prompts = [len(each.prompt) for each in requests]
    new = [each.parameters.max_new_tokens for each in requests]
    print(
        f"{family}, {arguments.layers} layers of {arguments.hidden}, on "
        f"{arguments.device}; {len(requests)} prompts, {arguments.rows} rows"
    )
    for name, lengths, drawn in (("prompts", PROMPT, prompts), ("completions", COMPLETION, new)):
        print(
            f"{name}: log-normal, median {lengths.median:g}, sigma {lengths.sigma:g}, "
            f"{lengths.least} to {lengths.most}; mean {statistics.mean(drawn):.0f}"
        )


def show(title: str, run: Run) -> None:
    print(
        f"{title:24}{run.tokens_per_second:9.1f} tokens/s{run.steps:8} steps"
        f"{100 * run.share:7.1f} % of rows alive"
    )


def never() -> bool:
    return False


if __name__ == "__main__":
    main()
