"""The GPU half of benchmarks.offload: full-size random models under a small card's memory.

torch may allocate no more than the GPU budget. Host memory of ours is held by
RLIMIT_DATA, which does not count the page cache; for a limit that does, and
that holds for all, start the benchmark in a control group of its own:

    systemd-run --user --scope -p MemoryMax=13G python -m benchmarks.offload --device cuda ...

For gpt-neox-20b: ours by the planner at the batch of the others, and at the
planner's own batch with two prompts more for each row to refill it, with
float16 and with int8 keys and values; the seed recipe (bitsandbytes int8 on
the GPU, float16 beside it) and accelerate's int8 offload, which is expected to
run out of memory because its hook never lets go of an int8 weight; and, with
every layer streamed from RAM, the share of the pinned link that is used, which
is measured in the same process. For the others: ours under the budget and
resident without one. Ours is the engine that a worker runs, and refilled rows
are measured with their prompts. The disk needs 45 GB, and unlimited RAM is 50.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import torch

from benchmarks.offload.contest import contest, show_ratios
from benchmarks.offload.contestant import Run
from benchmarks.offload.random_model import RandomModel, random_model
from engine.layout.blocks import SHAPES, config_of_shape
from engine.plan.probe import gpu_throughputs

GIB = 2**30
COLAB = "12.7GiB"
UNLIMITED = "unlimited"
LARGEST = "gpt-neox-20b"
LINK_BATCHES = (8, 32, 112)
PROMPT_TOKENS, NEW_TOKENS = 64, 32
# Prompts for each row of the planner's batch.
REFILLED_ROUNDS = 3
# Times the seed recipe's tokens a second, at its batch and at the planner's.
WANTED_AT_BATCH = {COLAB: 12.0, UNLIMITED: 11.0}
WANTED_REFILLED = {COLAB: {"float": 20.0}, UNLIMITED: {"float": 25.0, "int8": 45.0}}
_UNITS = {"GiB": GIB, "GB": 10**9, "MiB": 2**20, "MB": 10**6}
# Of --dry-run: the shapes, made tiny.
_TINY = {
    "hidden_size": 64,
    "n_embd": 64,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "num_layers": 4,
    "num_decoder_layers": 4,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_inner": 256,
    "vocab_size": 512,
}


def compare_on_gpu(folder: Path, arguments: argparse.Namespace) -> None:
    device = torch.device("cpu" if arguments.dry_run else "cuda")
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(0)}, torch {torch.__version__}")
        # Measured once and kept beside the models, where every process looks.
        for alias in models_of(arguments):
            gpu_throughputs(folder / alias / "throughputs.json", folder)
    for alias in models_of(arguments):
        config = tiny_config(alias) if arguments.dry_run else config_of_shape(alias)
        dtype = torch.float32 if arguments.dry_run else torch.float16
        model = random_model(config, torch.float16)
        tiny = random_model(tiny_config(alias), torch.float16)
        _write(tiny, folder / alias / "tiny", device, dtype)
        model.write_store(folder / alias / "store", device=device, dtype=dtype)
        print(f"\n{alias}, GPU budget {arguments.gpu_memory}")
        if alias == LARGEST:
            _largest(folder / alias, model, arguments)
        else:
            _other(folder / alias, arguments)
        shutil.rmtree(folder / alias)


def models_of(arguments: argparse.Namespace) -> list[str]:
    """The one that was asked for, else all with a shape, the largest first."""
    if arguments.model:
        return [arguments.model]
    aliases = sorted(path.stem for path in SHAPES.glob("*.json"))
    return sorted(aliases, key=lambda alias: alias != LARGEST)


def _largest(folder: Path, model: RandomModel, arguments: argparse.Namespace) -> None:
    links = {
        f"{way}, all from RAM, batch {rows}": _run(
            folder, arguments, way, UNLIMITED, rows, tiers="disk" if arguments.dry_run else "ram"
        )
        for rows in ([arguments.batch] if arguments.batch else LINK_BATCHES)
        for way in ("llm_int8", "w8a16")
    }
    contest(links)
    budgets = [arguments.cpu_memory] if arguments.cpu_memory else [COLAB, UNLIMITED]
    rows = arguments.batch or 32
    ours = {f"ours, {ram}": _run(folder, arguments, "llm_int8", ram, rows) for ram in budgets}
    ours |= {
        f"ours, own batch, {kv_cache} KV, {ram}": _run(
            folder,
            arguments,
            "llm_int8",
            ram,
            None,
            kv_cache=kv_cache,
            rounds=REFILLED_ROUNDS,
        )
        for ram in budgets
        for kv_cache in ("float", "int8")
    }
    speeds = contest(ours)
    # One of the two at a time, so that the disk need not hold both.
    shutil.rmtree(folder / "store")
    if arguments.dry_run:
        print("the stock libraries' offload needs a GPU: not tried in a dry run")
        return
    model.write_checkpoint(folder / "float16", torch.float16)
    theirs = {
        f"{way}, {ram}": _run(folder, arguments, way, ram, rows)
        for ram in budgets
        for way in ("seed", "accelerate-int8")
    }
    speeds |= contest(theirs)
    for ram in budgets:
        seed = f"seed, {ram}"
        wanted = {seed: WANTED_AT_BATCH.get(ram, 11.0), f"accelerate-int8, {ram}": 1.0}
        show_ratios(speeds, f"ours, {ram}", wanted)
        for kv_cache, times in WANTED_REFILLED.get(ram, {}).items():
            show_ratios(speeds, f"ours, own batch, {kv_cache} KV, {ram}", {seed: times})


def _other(folder: Path, arguments: argparse.Namespace) -> None:
    ram = arguments.cpu_memory or COLAB
    rows = arguments.batch or 32
    ours, whole = f"ours, {ram}", "ours, resident, no budget"
    speeds = contest(
        {
            ours: _run(folder, arguments, "llm_int8", ram, rows),
            whole: _run(
                folder, arguments, "llm_int8", UNLIMITED, rows, tiers="resident", gpu_bytes=None
            ),
        }
    )
    show_ratios(speeds, ours, {whole: 0.9})


def _run(
    folder: Path,
    arguments: argparse.Namespace,
    way: Any,
    ram: str,
    rows: int | None,
    **changes: Any,
) -> Run:
    options: dict[str, Any] = {
        "device": "cpu" if arguments.dry_run else "cuda",
        "gpu_bytes": None if arguments.dry_run else parse_bytes(arguments.gpu_memory),
        "cpu_bytes": parse_bytes(ram),
        "tiers": "plan",
        **changes,
    }
    return Run(
        way=way,
        folder=str(folder),
        tiny=str(folder / "tiny"),
        rows=rows,
        prompt_tokens=arguments.prompt_tokens or PROMPT_TOKENS,
        new_tokens=arguments.new_tokens or NEW_TOKENS,
        **options,
    )


def _write(model: RandomModel, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
    model.write_store(folder / "store", device=device, dtype=dtype)
    model.write_checkpoint(folder / "float16", torch.float16)


def parse_bytes(text: str) -> int | None:
    """Bytes of "12.7GiB"; None of "unlimited"."""
    if text == UNLIMITED:
        return None
    for unit, size in _UNITS.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * size)
    raise SystemExit(f"{text!r} is no size: give 12.7GiB, 15GB, ... or unlimited")


def tiny_config(alias: str) -> Any:
    """The same architecture, for what is only to be tried."""
    config = config_of_shape(alias)
    sizes = {name: size for name, size in _TINY.items() if name in config.to_dict()}
    return type(config)(**{**config.to_dict(), **sizes})
