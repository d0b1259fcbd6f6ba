"""Planning a catalogue model for this machine, or for one that is described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.interface import ModelLoadError, ModelSource
from engine.plan.demands import Workload
from engine.plan.plan import Budgets, Plan
from engine.plan.rates import CPU, T4, Throughputs
from jobs.settings import Settings

Speeds = Literal["auto", "measure", "t4"]


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What to plan for; None where the machine is to be asked.

    Attributes:
        speeds: "auto" takes what was measured on a GPU box, measuring once;
            "measure" measures again; "t4" takes a T4's constants.
    """

    source: ModelSource
    workload: Workload
    gpu_bytes: int | None
    cpu_bytes: int | None
    disk_bytes: int | None
    speeds: Speeds = "auto"


def plan_model(settings: Settings, request: PlanRequest) -> Plan:
    """Plan a model; its weights need not be there.

    Raises:
        CannotRunError: It cannot run within these budgets.
        ModelLoadError: Its configuration is not to be had.
    """
    from engine.layout.known import known_config
    from engine.layout.support import require_supported
    from engine.plan import machine
    from engine.plan.from_layout import demands_of_config
    from engine.plan.search import make_plan

    has_gpu = settings.device != "cpu" and machine.has_gpu()
    on_gpu = settings.device != "cpu" and (request.gpu_bytes is not None or has_gpu)
    if settings.device == "cuda" and not on_gpu:
        raise ModelLoadError(
            "torch sees no CUDA device here; name a card's memory with --gpu-memory, or plan "
            "for this machine's processor with --device cpu"
        )
    config = known_config(request.source)
    require_supported(config)
    model = demands_of_config(
        config, request.source.alias, on_gpu=on_gpu, kv_cache=settings.kv_cache
    )
    return make_plan(
        model,
        request.workload,
        _budgets(settings, request, on_gpu=on_gpu),
        _throughputs(settings, request.speeds, on_gpu=on_gpu, has_gpu=has_gpu),
    )


def _budgets(settings: Settings, request: PlanRequest, *, on_gpu: bool) -> Budgets:
    from engine.plan.machine import machine_budgets

    found = machine_budgets(settings.stores_path, on_gpu=on_gpu and request.gpu_bytes is None)
    given_gpu = found.gpu_bytes if request.gpu_bytes is None else request.gpu_bytes
    stored = _bytes_of_stores(settings.stores_path, request.source.alias)
    return Budgets(
        gpu_bytes=given_gpu if on_gpu else None,
        cpu_bytes=found.cpu_bytes if request.cpu_bytes is None else request.cpu_bytes,
        # What the model's store takes already need not be free.
        disk_bytes=found.disk_bytes + stored if request.disk_bytes is None else request.disk_bytes,
    )


def _bytes_of_stores(stores: Path, alias: str) -> int:
    """What stores of this model take, finished or not."""
    folders = [each for each in stores.glob(f"{alias}-*") if each.name.rpartition("-")[0] == alias]
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())


def _throughputs(settings: Settings, speeds: Speeds, *, on_gpu: bool, has_gpu: bool) -> Throughputs:
    if not on_gpu:
        return CPU
    if speeds == "t4" or not has_gpu:
        return T4
    from engine.plan.probe import gpu_throughputs

    return gpu_throughputs(
        settings.throughputs_path, settings.stores_path, again=speeds == "measure"
    )
