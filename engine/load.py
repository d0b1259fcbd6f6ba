"""Loading a model for a worker: its int8 store, a plan, and an engine around them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypedDict

from engine.cache.format import CacheDtype
from engine.checkpoint.folder import open_checkpoint
from engine.decode.engine import DecodeEngine
from engine.device import DeviceChoice, choose_device, free_unused_memory, plain_dtype
from engine.int8.linear import ComputeMode
from engine.interface import Engine, LoadProgress, ModelDescription, ModelSource
from engine.layout.families import family_of
from engine.layout.support import require_supported, row_state_bytes
from engine.model.loaded import Int8Model
from engine.model.place import place_model
from engine.model.whole import load_int8
from engine.plan.demands import Workload
from engine.plan.limits import BatchLimits
from engine.plan.on_this_machine import (
    DEFAULT_DISK_READERS,
    DEFAULT_WORKLOAD,
    PlacementOptions,
    limits_of,
    plan_on_this_machine,
    plan_whole,
)
from engine.plan.plan import Plan
from engine.store.prepare import store_for


def load_engine(
    source: ModelSource,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
    device: DeviceChoice = "auto",
    stores: Path | None = None,
    micro_batch_rows: int | None = None,
    compute_mode: ComputeMode = "llm_int8",
    gpu_bytes: int | None = None,
    cpu_bytes: int | None = None,
    kv_cache: CacheDtype = "float",
    disk_readers: int = DEFAULT_DISK_READERS,
    throughputs_cache: Path | None = None,
    workload: Workload = DEFAULT_WORKLOAD,
) -> Engine:
    """Load a model as int8, split over GPU, RAM and disk as its plan says.

    Args:
        source: The model.
        on_progress: Told how far downloading, preparing and loading are.
        should_stop: Asked on the way.
        device: Where to compute; "auto" takes the GPU if there is one.
        stores: The folder of int8 stores; the model's is made there first if
            need be. None loads the checkpoint itself, whole, onto the device.
        micro_batch_rows: Upper bound on rows that are decoded together.
        compute_mode: How int8 linears multiply.
        gpu_bytes: Bytes of the GPU for weights, cache and computing; None for what is free.
        cpu_bytes: Bytes of RAM for weights; None for what is free.
        kv_cache: How keys and values are kept.
        disk_readers: Threads that read from disk.
        throughputs_cache: Where measured rates are kept.
        workload: The rows to plan for.

    Raises:
        ModelLoadError: It cannot be loaded.
        LoadInterruptedError: should_stop() turned true on the way.
    """
    started = time.perf_counter()
    chosen = choose_device(device)
    options = PlacementOptions(
        gpu_bytes=gpu_bytes,
        cpu_bytes=cpu_bytes,
        mode=compute_mode,
        disk_readers=disk_readers,
        kv_cache=kv_cache,
        throughputs_cache=throughputs_cache,
        workload=workload,
    )
    hooks = _Hooks(on_progress=on_progress, should_stop=should_stop)
    # What an earlier model or a failed load left is not free for the plan until it is given back.
    free_unused_memory()
    checkpoint = open_checkpoint(source, accept=require_supported, **hooks)
    with closing(checkpoint.tensors):
        store = stores and store_for(source, checkpoint, stores, chosen, **hooks)
    if store:
        plan = plan_on_this_machine(store, options, chosen)
        loaded = place_model(
            store,
            plan.placement,
            chosen,
            tokenizer=checkpoint.tokenizer,
            mode=options.mode,
            disk_readers=options.disk_readers,
            **hooks,
        )
    else:
        folder = stores or checkpoint.folder
        plan = plan_whole(checkpoint.config, source.alias, folder, options, chosen)
        loaded = load_int8(checkpoint, chosen, mode=compute_mode, **hooks)
    limits = limits_of(plan, micro_batch_rows)
    seconds = time.perf_counter() - started
    description = _describe(
        source, loaded, plan=plan, limits=limits, mode=compute_mode, seconds=seconds
    )
    on_progress(LoadProgress(stage="ready", done=1, total=1, unit="models"))
    return DecodeEngine(
        loaded,
        description,
        limits=limits,
        cache_dtype=kv_cache,
        row_bytes=row_state_bytes(checkpoint.config, plain_dtype(chosen)),
    )


class _Hooks(TypedDict):
    """How a load reports its progress and is asked to stop; every step of it takes both."""

    on_progress: Callable[[LoadProgress], None]
    should_stop: Callable[[], bool]


def _describe(
    source: ModelSource,
    loaded: Int8Model,
    *,
    plan: Plan,
    limits: BatchLimits,
    mode: ComputeMode,
    seconds: float,
) -> ModelDescription:
    """What the log tells of a model and of the plan that was followed."""
    config: Any = loaded.model.config
    return ModelDescription(
        alias=source.alias,
        device=str(loaded.device),
        architecture=type(loaded.model).__name__,
        parameter_count=loaded.parameter_count,
        weight_bytes=loaded.weight_bytes,
        load_seconds=seconds,
        context_tokens=family_of(config).context_tokens(
            config,
            tokenizer_limit=loaded.tokenizer.model_max_length,
            catalogue_limit=source.context_tokens,
        ),
        compute_mode=mode,
        ram_bytes=plan.memory.ram_bytes,
        disk_bytes=sum(block.weight_bytes for block in plan.blocks_at("disk")),
        row_capacity=limits.rows,
        predicted_tokens_per_second=plan.prediction.tokens_per_second,
    )
