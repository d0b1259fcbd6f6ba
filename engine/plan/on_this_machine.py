"""The plan of a model for this machine, and what it leaves for rows.

`tgp-jobs plan`, a worker and `tgp-jobs run` plan with plan_demands, so that the
plan that is shown is the plan that is followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from engine.cache.format import CacheDtype
from engine.int8.linear import ComputeMode
from engine.interface import ModelLoadError
from engine.plan.cost import ACCUMULATOR_BYTES
from engine.plan.demands import ModelDemands, Workload
from engine.plan.from_layout import demands_of_config, demands_of_layout
from engine.plan.limits import BatchLimits
from engine.plan.machine import has_gpu, machine_budgets
from engine.plan.plan import Budgets, CannotRunError, Plan
from engine.plan.rates import CPU, T4, Throughputs
from engine.plan.search import make_plan
from engine.store.prepare import Int8Store

# Threads that read from disk.
DEFAULT_DISK_READERS = 2
# What `tgp-jobs plan` assumes where it is not told.
DEFAULT_WORKLOAD = Workload(prompt_tokens=128, new_tokens=128)
LOADED_WHOLE = (
    "transformers merges or computes some of this model's tensors, such as its experts, so it is "
    "loaded whole, with those in float, and not streamed"
)
# Rows may be shorter than what was planned for; so many times as many may come together.
_SHORTER_ROWS = 4


# "auto" takes what was measured on a GPU, measuring once; "measure" measures
# again; "t4" takes a T4's constants.
Speeds = Literal["auto", "measure", "t4"]


@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """How to place a model; None where the machine is to be asked.

    Attributes:
        gpu_bytes: Bytes on the GPU for weights, cache and computing.
        cpu_bytes: Bytes of RAM for weights and, on a box without a GPU, for all.
        disk_bytes: Bytes on disk for the model's store.
        mode: How int8 linears multiply.
        disk_readers: Threads that read from disk.
        kv_cache: How keys and values are kept.
        throughputs_cache: The file that keeps measured rates.
        speeds: Where rates are from.
        workload: The rows to plan for.
    """

    gpu_bytes: int | None = None
    cpu_bytes: int | None = None
    disk_bytes: int | None = None
    mode: ComputeMode = "llm_int8"
    disk_readers: int = DEFAULT_DISK_READERS
    kv_cache: CacheDtype = "float"
    throughputs_cache: Path | None = None
    speeds: Speeds = "auto"
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
    return _plan_or_refuse(model, store.folder.parent, options, on_gpu, store.bytes)


def plan_whole(
    config: Any, alias: str, stores: Path, options: PlacementOptions, device: torch.device
) -> Plan:
    """Plan a model of which no store is made: all of it is resident.

    Raises:
        ModelLoadError: It cannot run within the budgets; the message names the
            smallest that would do.
    """
    on_gpu = device.type == "cuda"
    model = demands_of_config(
        config, alias, on_gpu=on_gpu, kv_cache=options.kv_cache, is_whole=True
    )
    return _plan_or_refuse(model, stores, options, on_gpu, stored_bytes=0)


def _plan_or_refuse(
    model: ModelDemands,
    stores: Path,
    options: PlacementOptions,
    on_gpu: bool,
    stored_bytes: int,
) -> Plan:
    try:
        return plan_demands(model, stores, options, on_gpu=on_gpu, stored_bytes=stored_bytes)
    except CannotRunError as error:
        whole = f" ({LOADED_WHOLE})" if model.is_whole else ""
        raise ModelLoadError(
            f"{error}{whole}; free memory that other programs hold, raise the budgets, or choose "
            "a smaller model (`tgp-jobs plan` shows what fits)"
        ) from error


def plan_demands(
    model: ModelDemands,
    stores: Path,
    options: PlacementOptions,
    *,
    on_gpu: bool,
    stored_bytes: int,
) -> Plan:
    """Plan a model within the budgets that are given or, where none is, what is free here.

    Args:
        model: What the model asks for.
        stores: The folder of int8 stores; it need not exist yet.
        options: The budgets, the rows and where rates are from.
        on_gpu: Whether a GPU computes, here or on the machine that is described.
        stored_bytes: Bytes that the model's store takes on disk already, which
            need not be free.

    Raises:
        CannotRunError: The model cannot run within these budgets.
    """
    budgets = _budgets(stores, options, on_gpu=on_gpu, stored_bytes=stored_bytes)
    rates = _throughputs(stores, options) if on_gpu else CPU
    return make_plan(model, options.workload, budgets, rates)


def _budgets(
    stores: Path, options: PlacementOptions, *, on_gpu: bool, stored_bytes: int
) -> Budgets:
    # A budget of 0 is one that was given.
    found = machine_budgets(stores, on_gpu=on_gpu and options.gpu_bytes is None)
    gpu_bytes = found.gpu_bytes if options.gpu_bytes is None else options.gpu_bytes
    disk_bytes = found.disk_bytes + stored_bytes
    return Budgets(
        gpu_bytes=gpu_bytes if on_gpu else None,
        cpu_bytes=found.cpu_bytes if options.cpu_bytes is None else options.cpu_bytes,
        disk_bytes=disk_bytes if options.disk_bytes is None else options.disk_bytes,
    )


def _throughputs(stores: Path, options: PlacementOptions) -> Throughputs:
    if options.speeds == "t4" or not has_gpu():
        return T4
    from engine.plan.probe import gpu_throughputs

    cache = options.throughputs_cache or stores.parent / "throughputs.json"
    return gpu_throughputs(cache, stores, again=options.speeds == "measure")


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
