"""One load in a process of its own, and its cost as JSON; see benchmarks.load.

    python -m benchmarks.one_load transformers|first|second FOLDER cpu|cuda

FOLDER holds "checkpoint", "tiny", which is loaded first so that every library
is there before the clock starts, and later "stores".
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.checkpoint.folder import open_checkpoint
from engine.device import plain_dtype
from engine.interface import LoadProgress, ModelSource
from engine.layout.skeleton import int8_settings
from engine.model.place import place_model
from engine.plan.on_this_machine import PlacementOptions, plan_on_this_machine
from engine.store.prepare import store_for
from tests.peak_memory import PeakMemory, anonymous_bytes


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one load; "ready" is with a forward pass. Memory is above the baseline."""

    load_seconds: float
    ready_seconds: float
    load_peak_bytes: int
    ready_peak_bytes: int


def main(load: str, folder: Path, device: torch.device) -> None:
    loader = by_transformers if load == "transformers" else by_engine
    answer(loader(folder / "tiny", folder / f"tiny-{load}", device), device)
    baseline, peak = anonymous_bytes(), PeakMemory()
    started = time.perf_counter()
    model = loader(folder / "checkpoint", folder / "stores", device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    load_seconds, load_peak_bytes = time.perf_counter() - started, peak.bytes
    answer(model, device)
    ready_seconds = time.perf_counter() - started
    cost = Cost(
        load_seconds=load_seconds,
        ready_seconds=ready_seconds,
        load_peak_bytes=load_peak_bytes - baseline,
        ready_peak_bytes=peak.stop() - baseline,
    )
    sys.stdout.write(json.dumps(asdict(cost)) + "\n")


def by_transformers(checkpoint: Path, _stores: Path, device: torch.device) -> Any:
    """As a notebook does it, in the dtype that the engine computes in."""
    return AutoModelForCausalLM.from_pretrained(
        checkpoint,
        quantization_config=int8_settings(AutoConfig.from_pretrained(checkpoint)),
        device_map={"": device},
        dtype=plain_dtype(device),
    ).eval()


def by_engine(checkpoint: Path, stores: Path, device: torch.device) -> Any:
    """As load_engine: store, plan, placement; the store is made if it is not there."""
    said: dict[str, Callable[..., Any]] = {"on_progress": ignore, "should_stop": never}
    source = ModelSource(alias="measured", folder=checkpoint)
    opened = open_checkpoint(source, **said)
    store = store_for(source, opened, stores, device, **said)
    assert store is not None
    plan = plan_on_this_machine(store, PlacementOptions(), device)
    return place_model(
        store,
        plan.placement,
        device,
        tokenizer=opened.tokenizer,
        mode="llm_int8",
        on_progress=ignore,
        should_stop=never,
    ).model


def answer(model: Any, device: torch.device) -> None:
    """One forward pass of one token, and wait for its outcome."""
    with torch.inference_mode():
        model(input_ids=torch.tensor([[2]], device=device)).logits.argmax().item()


def never() -> bool:
    return False


def ignore(_progress: LoadProgress) -> None:
    return None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), torch.device(sys.argv[3]))
