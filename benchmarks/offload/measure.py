"""Times a stock generate() step by step, however the model's weights are brought to it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from engine.layout.blocks import BlockFinder
from engine.quiet import quiet_libraries
from engine.weights.passes import StreamTotals, WeightPasses

PAD = 1


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What generating took; the first token's time is the prompts'.

    Attributes:
        prompt_seconds: To the first token.
        step_seconds: Of each later one.
        tokens: Of all rows.
        first_tokens: Of them, those of the first step.
        streamed_bytes: In all the later steps together.
        wait_seconds: Of them, spent waiting for weights.
        processor_seconds: Of this process's threads, in all the later steps together.
    """

    prompt_seconds: float
    step_seconds: tuple[float, ...]
    tokens: int
    first_tokens: int
    streamed_bytes: int
    wait_seconds: float
    processor_seconds: float


class _Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token is there."""

    def __init__(self, totals: Callable[[], StreamTotals]) -> None:
        self.times = [time.perf_counter()]
        self.streamed: list[StreamTotals] = []
        self.processor: list[float] = []
        self._totals = totals

    def __call__(self, input_ids: Any, scores: Any, **_rest: Any) -> Any:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.streamed.append(self._totals())
        self.processor.append(time.process_time())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(model: Any, passes: WeightPasses, input_ids: torch.Tensor, new_tokens: int) -> Steps:
    """Generate greedily, every row to its full length.

    Args:
        model: A transformers model.
        passes: Runs its forward passes.
        input_ids: int64 [B, S], without padding.
        new_tokens: Of each row; two at least.

    Returns:
        What it took.
    """
    model.generation_config = GenerationConfig()
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=PAD,
        decoder_start_token_id=PAD if model.config.is_encoder_decoder else None,
    )
    clock = _Clock(lambda: passes.totals)

    def run() -> Any:
        return model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList([clock]),
        )

    with quiet_libraries(), torch.inference_mode():
        passes.together([run])
    seconds = [later - sooner for sooner, later in zip(clock.times, clock.times[1:], strict=False)]
    streamed = clock.streamed[-1].since(clock.streamed[0])
    return Steps(
        prompt_seconds=seconds[0],
        step_seconds=tuple(seconds[1:]),
        tokens=len(input_ids) * new_tokens,
        first_tokens=len(input_ids),
        streamed_bytes=streamed.streamed_bytes,
        wait_seconds=streamed.link_wait_seconds,
        processor_seconds=clock.processor[-1] - clock.processor[0],
    )


@dataclass
class PageCache:
    """Keeps the files of a model's blocks out of the page cache, or in it.

    As on a box whose memory holds no more than the budget: a block's pages
    are dropped as soon as it was computed with, so that its next read is one
    of the disk. What is mapped and in use stays.

    Attributes:
        files: The weight files, each named for its block.
        seconds: Spent on dropping.
    """

    files: tuple[Path, ...]
    seconds: float = 0.0
    _open: dict[str, int] = field(default_factory=dict)

    def drop(self) -> None:
        """Drop everything, what is not written yet after writing it."""
        for file in self.files:
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)

    def fill(self) -> None:
        """Read everything once."""
        for file in self.files:
            with file.open("rb", buffering=0) as opened:
                while opened.read(2**24):
                    pass

    def drop_after_use(self, model: Any) -> None:
        """Drop each block's file after each of its uses, and the others after each pass."""
        self._open = {file.name.split(".")[0]: os.open(file, os.O_RDONLY) for file in self.files}
        blocks = BlockFinder(model).blocks
        for module_name, (kind, block) in blocks.items():
            if kind in ("encoder", "decoder"):
                model.get_submodule(module_name).register_forward_hook(
                    lambda *_, block=block: self._drop_blocks(block)
                )
        used = {block for kind, block in blocks.values() if kind in ("encoder", "decoder")}
        others = [block for block in self._open if block not in used]
        model.register_forward_hook(lambda *_: self._drop_blocks(*others))

    def _drop_blocks(self, *blocks: str) -> None:
        started = time.perf_counter()
        for block in blocks:
            os.posix_fadvise(self._open[block], 0, 0, os.POSIX_FADV_DONTNEED)
        self.seconds += time.perf_counter() - started
