"""Planning a catalogue model for this machine, or for one that is described."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engine.interface import ModelLoadError, ModelSource
from jobs.settings import Settings

if TYPE_CHECKING:
    from engine.plan.demands import Workload
    from engine.plan.on_this_machine import Speeds
    from engine.plan.plan import Plan


def plan_model(
    settings: Settings,
    source: ModelSource,
    workload: Workload,
    *,
    disk_bytes: int | None = None,
    speeds: Speeds = "auto",
) -> Plan:
    """Plan a model as a worker with these settings would; its weights need not be there.

    Args:
        settings: The budgets and the device.
        source: The model.
        workload: The rows to plan for.
        disk_bytes: Bytes on disk for the model's store; None for what is free.
        speeds: Where rates are from.

    Raises:
        CannotRunError: It cannot run within these budgets.
        ModelLoadError: Its configuration is not to be had.
    """
    from engine.layout.known import known_config
    from engine.layout.support import require_supported
    from engine.plan import machine
    from engine.plan.from_layout import demands_of_config
    from engine.plan.on_this_machine import PlacementOptions, plan_demands

    # A card whose memory is named need not be here.
    has_gpu = settings.gpu_memory is not None or machine.has_gpu()
    on_gpu = settings.device != "cpu" and has_gpu
    if settings.device == "cuda" and not on_gpu:
        raise ModelLoadError(
            "torch sees no CUDA device here; name a card's memory with --gpu-memory, or plan "
            "for this machine's processor with --device cpu"
        )
    config = known_config(source)
    require_supported(config)
    model = demands_of_config(config, source.alias, on_gpu=on_gpu, kv_cache=settings.kv_cache)
    options = PlacementOptions(
        gpu_bytes=settings.gpu_memory,
        cpu_bytes=settings.cpu_memory,
        disk_bytes=disk_bytes,
        kv_cache=settings.kv_cache,
        throughputs_cache=settings.throughputs_path,
        speeds=speeds,
        workload=workload,
    )
    stores = settings.stores_path
    stored_bytes = _bytes_of_stores(stores, source.alias)
    return plan_demands(model, stores, options, on_gpu=on_gpu, stored_bytes=stored_bytes)


def _bytes_of_stores(stores: Path, alias: str) -> int:
    """Bytes that stores of this model take, complete or not."""
    folders = [each for each in stores.glob(f"{alias}-*") if each.name.rpartition("-")[0] == alias]
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file())
