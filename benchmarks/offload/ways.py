"""The ways to run a model that does not fit: ours, and those of the stock libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from accelerate.utils import (
    BnbQuantizationConfig,
    get_balanced_memory,
    infer_auto_device_map,
    load_and_quantize_model,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
)

from benchmarks.offload.our_engine import byte_tokenizer, engine_of
from engine.cache.format import CacheDtype
from engine.decode.engine import DecodeEngine
from engine.int8.linear import ComputeMode
from engine.model.place import place_model
from engine.plan.demands import Workload
from engine.plan.limits import BatchLimits
from engine.plan.on_this_machine import PlacementOptions, limits_of, plan_on_this_machine
from engine.plan.plan import Tier
from engine.quiet import quiet_libraries
from engine.store.manifest import read_manifest
from engine.store.prepare import Int8Store
from engine.weights.passes import ResidentPasses, WeightPasses

# The first two are ours. "seed" is transformers with bitsandbytes int8 on the GPU
# and float16 beside it; "accelerate-int8" keeps int8 beside it; the last two are
# accelerate's offload of a float checkpoint to disk.
Way = Literal["llm_int8", "w8a16", "seed", "accelerate-int8", "bfloat16", "float32"]
OURS: tuple[ComputeMode, ...] = ("llm_int8", "w8a16")
# No plan has room for more.
MOST_ROWS = 512
# Of a GPU budget, what stock libraries are told to fill with weights: the rest
# is for cache and computing, as 11 of 15 GiB in the notebooks they come from.
_SHARE_FOR_WEIGHTS = 11 / 15


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model and how to run it.

    Attributes:
        model: Of transformers.
        passes: Runs its forward passes.
        placement: Where its weights are, in words.
        files: Its weight files.
        engine: Of ours: what a worker runs.
        mapped_bytes: Of ours, on a CPU: of the store's files, what stays mapped.
        close: Frees it.
    """

    model: Any
    passes: WeightPasses
    placement: str
    files: tuple[Path, ...]
    engine: DecodeEngine | None = None
    mapped_bytes: int = 0
    close: Callable[[], None] = lambda: None


def load(
    way: Way,
    folder: Path,
    *,
    tiers: str,
    device: torch.device,
    gpu_bytes: int | None,
    cpu_bytes: int | None,
    kv_cache: CacheDtype,
    rows: int | None,
    prompt_tokens: int,
    new_tokens: int,
) -> Loaded:
    """Load a model one way; see benchmarks.offload.contestant for the arguments."""
    if way in OURS:
        options = PlacementOptions(
            gpu_bytes=gpu_bytes,
            cpu_bytes=cpu_bytes,
            mode="w8a16" if way == "w8a16" else "llm_int8",
            kv_cache=kv_cache,
            workload=Workload(
                prompt_tokens=prompt_tokens, new_tokens=new_tokens, shard_rows=rows or MOST_ROWS
            ),
        )
        return _ours(folder / "store", device, options, tiers, rows)
    most = _max_memory(gpu_bytes, cpu_bytes)
    if way == "seed":
        return _seed_recipe(folder / "float16", most)
    if way == "accelerate-int8":
        return _accelerate_int8(folder / "float16", most)
    return _accelerate_to_disk(folder / way, getattr(torch, way), most)


def open_folder(folder: Path) -> Int8Store:
    """The store in a folder."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.layout is None:
        raise RuntimeError(f"no store in {folder}")
    return Int8Store(
        alias=folder.parent.name,
        config=AutoConfig.from_pretrained(folder),
        folder=folder,
        manifest=manifest,
        layout=manifest.layout,
        was_there=True,
    )


def _ours(
    folder: Path, device: torch.device, options: PlacementOptions, tiers: str, rows: int | None
) -> Loaded:
    store = open_folder(folder)
    if tiers == "plan":
        plan = plan_on_this_machine(store, options, device)
        if rows is not None and plan.rows < rows:
            raise RuntimeError(f"the plan has room for {plan.rows} rows, not {rows}")
        where, limits = plan.placement, limits_of(plan, rows or plan.rows)
    else:
        where = tiers_of_layers(store, tiers)
        limits = BatchLimits(rows=rows or 1, encoded_rows=rows or 1)
    loaded = place_model(
        store,
        where,
        device,
        tokenizer=byte_tokenizer(),
        mode=options.mode,
        on_progress=lambda _: None,
        should_stop=lambda: False,
    )
    workload = options.workload
    context_tokens = workload.prompt_tokens + workload.new_tokens + 1
    return Loaded(
        engine=engine_of(
            loaded,
            limits,
            mode=options.mode,
            cache_dtype=options.kv_cache,
            context_tokens=context_tokens,
        ),
        model=loaded.model,
        passes=loaded.passes,
        placement=_in_words(list(where.values())),
        files=_weight_files(folder),
        mapped_bytes=0 if device.type == "cuda" else _resident_bytes(store, where),
        close=loaded.free,
    )


def _resident_bytes(store: Int8Store, tiers: Mapping[str, Tier]) -> int:
    blocks = store.layout.blocks
    return sum(block.bytes for block in blocks if tiers[block.name] == "resident")


def tiers_of_layers(store: Int8Store, tier: str) -> dict[str, Tier]:
    """The layers in one place, everything else resident."""
    known: dict[str, Tier] = {"resident": "resident", "ram": "ram", "disk": "disk"}
    return {
        block.name: known[tier] if block.kind in ("encoder", "decoder") else "resident"
        for block in store.layout.blocks
    }


def _seed_recipe(folder: Path, most: dict[int | str, int]) -> Loaded:
    return _by_transformers(
        folder,
        torch.float16,
        most,
        quantization_config=BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True
        ),
    )


def _accelerate_int8(folder: Path, most: dict[int | str, int]) -> Loaded:
    config = AutoConfig.from_pretrained(folder)
    with quiet_libraries(), init_empty_weights():
        model = _auto_class(config).from_config(config, dtype=torch.float16)
    model.tie_weights()
    settings = BnbQuantizationConfig(load_in_8bit=True, torch_dtype=torch.float16)
    halves: dict[str, Any] = {
        "no_split_module_classes": list(model._no_split_modules),
        "dtype": torch.int8,
    }
    room = get_balanced_memory(model, max_memory=most, low_zero=False, **halves)
    device_map = infer_auto_device_map(model, max_memory=room, **halves)
    quantised = load_and_quantize_model(
        model,
        bnb_quantization_config=settings,
        weights_location=str(folder),
        device_map=device_map,
        offload_folder=str(folder / "offload"),
    )
    return Loaded(
        model=quantised.eval(),
        passes=ResidentPasses(),
        placement=_in_words([str(tier) for tier in device_map.values()]),
        files=_weight_files(folder),
    )


def _accelerate_to_disk(folder: Path, dtype: torch.dtype, most: dict[int | str, int]) -> Loaded:
    return _by_transformers(folder, dtype, most)


def _by_transformers(
    folder: Path, dtype: torch.dtype, most: dict[int | str, int], **options: Any
) -> Loaded:
    config = AutoConfig.from_pretrained(folder)
    with quiet_libraries():
        model = (
            _auto_class(config)
            .from_pretrained(
                folder,
                dtype=dtype,
                device_map="auto",
                max_memory=most,
                offload_folder=str(folder / "offload"),
                **options,
            )
            .eval()
        )
    tiers = [str(tier) for tier in getattr(model, "hf_device_map", {}).values()]
    return Loaded(
        model=model,
        passes=ResidentPasses(),
        placement=_in_words(tiers),
        files=_weight_files(folder),
    )


def _max_memory(gpu_bytes: int | None, cpu_bytes: int | None) -> dict[int | str, int]:
    most: dict[int | str, int] = {}
    if torch.cuda.is_available():
        total = gpu_bytes or torch.cuda.get_device_properties(0).total_memory
        most[0] = int(total * _SHARE_FOR_WEIGHTS)
    most["cpu"] = cpu_bytes or 2**40
    return most


def _auto_class(config: Any) -> Any:
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _weight_files(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.safetensors")))


def _in_words(tiers: list[Any]) -> str:
    return ", ".join(f"{tiers.count(tier)} {tier}" for tier in sorted(set(tiers)))
