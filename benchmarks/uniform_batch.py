"""Rows of one length, which nobody can refill: what a step of ours costs beside generate()'s.

Part of benchmarks.batching. The two take turns step by step, and who begins
changes from run to run: of an even number of runs each begins half, which
matters to what the first step pays for memory. CPU seconds are of this
process, so they count on a machine that does other things too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.batching_models import description, forced_request
from benchmarks.taking_turns import Cost, take_turns
from engine.decode.engine import DecodeEngine
from engine.decode.stopping import text_of_new
from engine.interface import RequestList
from engine.model.loaded import Int8Model
from engine.plan.limits import BatchLimits
from engine.quiet import quiet_libraries
from tests.tiny_checkpoints import PAD

PROMPT_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class UniformRuns:
    """What each of some runs cost, run by run, and how many rows got the same text."""

    stock: list[Cost]
    ours: list[Cost]
    rows: int
    rows_alike: int

    def ratio(self, seconds_of: Callable[[Cost], float]) -> float:
        """How many times what ours cost the other did: the median of the runs' own ratios."""
        return statistics.median(
            seconds_of(stock) / seconds_of(ours)
            for stock, ours in zip(self.stock, self.ours, strict=True)
        )


class UniformBatch:
    """One batch for both; what is measured are whole calls, prefill and results included."""

    def __init__(self, model: Int8Model, rows: int, new_tokens: int) -> None:
        self._model = model
        self._engine = DecodeEngine(
            model, description(model), limits=BatchLimits(rows=rows, encoded_rows=rows)
        )
        self._requests = [forced_request(key, PROMPT_TOKENS, new_tokens) for key in range(rows)]
        prompt = model.tokenizer(self._requests[0].prompt)["input_ids"]
        self._input_ids = torch.tensor([prompt] * rows)
        self._settings = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=PAD, decoder_start_token_id=PAD
        )

    def measured(self, runs: int) -> UniformRuns:
        """After a run that warms up."""
        take_turns(self._generate, self._ours)
        stock, ours = [], []
        for run in range(runs):
            if run % 2:
                mine, theirs = take_turns(self._ours, self._generate)
            else:
                theirs, mine = take_turns(self._generate, self._ours)
            stock.append(theirs)
            ours.append(mine)
        alike = sum(
            one == other for one, other in zip(self._stock_texts, self._our_texts, strict=True)
        )
        return UniformRuns(stock=stock, ours=ours, rows=len(self._requests), rows_alike=alike)

    def _ours(self, pass_on: Callable[[], None]) -> None:
        def never_stop() -> bool:
            pass_on()
            return False

        batches = self._engine.generate(RequestList(self._requests), should_stop=never_stop)
        texts = {result.key: result.text for batch in batches for result in batch.results}
        self._our_texts = [texts[request.key] for request in self._requests]

    def _generate(self, pass_on: Callable[[], None]) -> None:
        ids = self._input_ids.to(self._model.device)
        with torch.inference_mode(), quiet_libraries():
            tokens = self._model.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._settings,
                streamer=_StepStreamer(pass_on),
            ).tolist()
        is_encoder_decoder = self._model.model.config.is_encoder_decoder
        read = 1 if is_encoder_decoder else ids.shape[1]
        before = 0 if is_encoder_decoder else read
        self._stock_texts = [
            text_of_new(self._model.tokenizer, row[:before], row[read:]) for row in tokens
        ]


class _StepStreamer:
    """generate() tells it of every step's tokens."""

    def __init__(self, pass_on: Callable[[], None]) -> None:
        self._pass_on = pass_on

    def put(self, _tokens: Any) -> None:
        self._pass_on()

    def end(self) -> None:
        pass


def show_uniform(family: str, runs: UniformRuns) -> None:
    """A line of figures: medians, and of the ratios too."""
    figures = [
        statistics.median(each)
        for costs in (runs.stock, runs.ours)
        for each in ([cost.cpu_seconds for cost in costs], [cost.seconds for cost in costs])
    ]
    figures += [runs.ratio(lambda cost: cost.cpu_seconds), runs.ratio(lambda cost: cost.seconds)]
    print(
        f"{family:10}" + "".join(f"{figure:12.2f}" for figure in figures),
        f"{runs.rows_alike:8} of {runs.rows} rows alike",
        flush=True,
    )


def show_uniform_head(rows: int, new_tokens: int, runs: int) -> None:
    print(f"\nuniform: {rows} rows of {PROMPT_TOKENS} prompt and {new_tokens} new tokens,")
    print(f"generate() and our loop step by step in turn, medians of {runs} runs")
    titles = ("stock CPU s", "wall s", "ours CPU s", "wall s", "x by CPU", "x by wall")
    print(" " * 10 + "".join(f"{title:>12}" for title in titles))
