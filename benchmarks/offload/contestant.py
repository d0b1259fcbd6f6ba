"""One way to run a model larger than its memory, in a process of its own; JSON on stdout.

    python -m benchmarks.offload.contestant '{"way": "llm_int8", "folder": ..., ...}'

See benchmarks.offload. The folder holds "store", and float checkpoints that
are named for their dtype.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from benchmarks.offload.measure import PageCache, Steps, generate
from benchmarks.offload.our_engine import generate_by_engine
from benchmarks.offload.pinned_link import link_bytes_per_second
from benchmarks.offload.ways import OURS, Loaded, Way, load
from engine.cache.format import CacheDtype
from tests.peak_memory import PeakMemory, anonymous_bytes

# Until a budget is enforced: address space that libraries take and never touch.
UNTOUCHED_BYTES = 2**28
_WARM_UP_TOKENS = 3
_WARM_UP_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Run:
    """What to run.

    Attributes:
        way: See ways.
        tiers: "plan", or where every layer is to be: "resident", "ram", "disk".
        folder: Holds the model.
        tiny: Another such folder, of a model that is run before anything is measured.
        device: "cpu" or "cuda".
        gpu_bytes: The most that torch may allocate on the GPU; None for all of it.
        cpu_bytes: For weights and, on a CPU, cache and computing; None for no limit.
        page_cache: "cold", "warm", or "as it is".
        kv_cache: Of ours: "float" or "int8".
        rows: Prompts, all of one length; None for as many as our plan has room for.
        rounds: Of ours: so many prompts for each row; as one is over, the next takes its place.
        prompt_tokens: Of each.
        new_tokens: Of each.
    """

    way: Way
    tiers: str = "plan"
    folder: str
    tiny: str
    device: str = "cpu"
    gpu_bytes: int | None = None
    cpu_bytes: int | None = None
    page_cache: str = "as it is"
    kv_cache: CacheDtype = "float"
    rows: int | None
    rounds: int = 1
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What it took.

    Attributes:
        steps: In time.
        peak_bytes: Of anonymous memory, above what was held before the load.
        mapped_bytes: Of ours, on a CPU: of the store's files, what stays mapped beside it.
        gpu_peak_bytes: That torch allocated.
        dropping_seconds: Of the steps' time, spent on dropping pages.
        placement: In words.
        link_bytes_per_second: From pinned memory, measured after the run.
    """

    steps: Steps
    peak_bytes: int
    mapped_bytes: int
    gpu_peak_bytes: int
    dropping_seconds: float
    placement: str
    link_bytes_per_second: float


def main(run: Run) -> Outcome:
    warm_up = replace(
        run, folder=run.tiny, tiers="plan", new_tokens=_WARM_UP_TOKENS, page_cache="as it is"
    )
    warmed = _load(replace(warm_up, cpu_bytes=_WARM_UP_BYTES, gpu_bytes=None))
    _measure(warm_up, warmed)
    warmed.close()
    _enforce(run)
    baseline, peak = anonymous_bytes(), PeakMemory()
    loaded = _load(run)
    steps, dropping_seconds = _measure(run, loaded)
    peak_bytes = peak.stop() - baseline
    on_gpu = run.device == "cuda"
    gpu_peak_bytes = torch.cuda.max_memory_allocated() if on_gpu else 0
    loaded.close()
    return Outcome(
        steps=steps,
        peak_bytes=peak_bytes,
        mapped_bytes=loaded.mapped_bytes,
        gpu_peak_bytes=gpu_peak_bytes,
        dropping_seconds=dropping_seconds,
        placement=loaded.placement,
        link_bytes_per_second=link_bytes_per_second() if on_gpu else 0.0,
    )


def _enforce(run: Run) -> None:
    """Let allocations beyond the budgets fail.

    RLIMIT_DATA counts private memory that may be written, also what of a file
    is mapped so, but not the page cache; a control group around the whole
    benchmark limits that as well. safetensors maps every file so, whole, and
    the stock libraries fail under it though they hold less: only their peak
    is shown.
    """
    if run.gpu_bytes is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, run.gpu_bytes / total))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if run.cpu_bytes is not None and run.way in OURS:
        limit = private_bytes() + run.cpu_bytes + UNTOUCHED_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _load(run: Run) -> Loaded:
    return load(
        run.way,
        Path(run.folder),
        tiers=run.tiers,
        device=torch.device(run.device),
        gpu_bytes=run.gpu_bytes,
        cpu_bytes=run.cpu_bytes,
        kv_cache=run.kv_cache,
        rows=run.rows,
        prompt_tokens=run.prompt_tokens,
        new_tokens=run.new_tokens,
    )


def _measure(run: Run, loaded: Loaded) -> tuple[Steps, float]:
    cache = PageCache(loaded.files)
    if run.page_cache == "warm":
        cache.fill()
    elif run.page_cache == "cold":
        cache.drop_after_use(loaded.model)
        cache.drop()
    if loaded.engine is not None:
        steps = generate_by_engine(
            loaded.engine,
            loaded.passes,
            is_encoder_decoder=loaded.model.config.is_encoder_decoder,
            requests=run.rounds * loaded.engine.row_capacity,
            prompt_tokens=run.prompt_tokens,
            new_tokens=run.new_tokens,
        )
    else:
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(2, 256, (run.rows or 1, run.prompt_tokens), generator=generator)
        steps = generate(loaded.model, loaded.passes, ids.to(run.device), run.new_tokens)
    return steps, cache.seconds


def private_bytes() -> int:
    """What RLIMIT_DATA counts."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say VmData")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(main(Run(**json.loads(sys.argv[1]))))) + "\n")
