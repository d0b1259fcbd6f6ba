"""The plan of a store for this machine, and what it leaves for rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from engine.cache.format import CacheDtype
from engine.int8.linear import ComputeMode
from engine.interface import ModelLoadError
from engine.plan.cost import ACCUMULATOR_BYTES
from engine.plan.demands import Workload
from engine.plan.from_layout import demands_of_layout
from engine.plan.limits import BatchLimits
from engine.plan.machine import machine_budgets
from engine.plan.plan import Budgets, CannotRunError, Plan
from engine.plan.rates import CPU, Throughputs
from engine.plan.search import make_plan
from engine.store.prepare import Int8Store

# Threads that read from disk.
DEFAULT_DISK_READERS = 2
# What `tgp-jobs plan` assumes where it is not told.
DEFAULT_WORKLOAD = Workload(prompt_tokens=128, new_tokens=128)
# Rows may be shorter than what was planned for; so many times as many may come together.
_SHORTER_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """How to place a model; None where the machine is to be asked.

    Attributes:
        gpu_bytes: Of the GPU, for weights, cache and computing.
        cpu_bytes: Of RAM, for weights and, on a box without a GPU, for all.
        mode: How int8 linears multiply.
        disk_readers: Threads that read from disk.
        kv_cache: How keys and values are kept.
        throughputs_cache: Where measured rates are kept.
        workload: The rows to plan for.
    """

    gpu_bytes: int | None = None
    cpu_bytes: int | None = None
    mode: ComputeMode = "llm_int8"
    disk_readers: int = DEFAULT_DISK_READERS
    kv_cache: CacheDtype = "float"
    throughputs_cache: Path | None = None
    workload: Workload = DEFAULT_WORKLOAD


def plan_on_this_machine(store: Int8Store, options: PlacementOptions, device: torch.device) -> Plan:
    """Plan a store for this machine.

    Raises:
        ModelLoadError: It cannot run within the budgets; the message names the
            smallest that would do.
    """
    on_gpu = device.type == "cuda"
    model = demands_of_layout(
        store.config,
        store.alias,
        store.layout,
        on_gpu=on_gpu,
        kv_cache=options.kv_cache,
        store_bytes=store.bytes,
    )
    stores = store.folder.parent
    found = machine_budgets(stores, on_gpu=on_gpu and options.gpu_bytes is None)
    budgets = Budgets(
        gpu_bytes=(options.gpu_bytes or found.gpu_bytes) if on_gpu else None,
        cpu_bytes=options.cpu_bytes or found.cpu_bytes,
        # It is on the disk already.
        disk_bytes=max(found.disk_bytes, model.store_bytes),
    )
    throughputs = _throughputs(stores, options) if on_gpu else CPU
    try:
        return make_plan(model, options.workload, budgets, throughputs)
    except CannotRunError as error:
        raise ModelLoadError(
            f"{error}; free memory that other programs hold, raise the budgets, or choose a "
            "smaller model (`tgp-jobs plan` shows what fits)"
        ) from error


def _throughputs(stores: Path, options: PlacementOptions) -> Throughputs:
    from engine.plan.probe import gpu_throughputs

    cache = options.throughputs_cache or stores.parent / "throughputs.json"
    return gpu_throughputs(cache, stores, again=False)


def limits_of(plan: Plan, most_rows: int | None) -> BatchLimits:
    """What a plan leaves for rows.

    The plan's rows are all of one length. Shorter ones may be more, within
    the same cache; what they add to logits and scores is taken off it.

    Args:
        plan: The plan.
        most_rows: A cap that the user has set, or None.
    """
    workload, model = plan.workload, plan.model
    rows = min(workload.shard_rows, _SHORTER_ROWS * plan.rows)
    context = workload.prompt_tokens + workload.new_tokens
    row_bytes = model.vocabulary_size * (model.float_bytes + 2 * ACCUMULATOR_BYTES)
    row_bytes += model.heads * context * (model.float_bytes + ACCUMULATOR_BYTES)
    left = plan.memory.kv_bytes - (rows - plan.rows) * row_bytes
    if left < plan.memory.kv_bytes // 2:
        rows, left = plan.rows, plan.memory.kv_bytes
    return BatchLimits(
        rows=min(rows, most_rows or rows),
        cache_bytes=left,
        prefill_tokens=model.prefill_tokens,
        encoded_rows=plan.encoded_rows,
    )
