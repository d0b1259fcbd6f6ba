"""What loading a model costs: seconds, and memory that the kernel cannot drop.

    python -m benchmarks.load [--megabytes 1200] [--device cpu|cuda]
                              [--family gpt-neox|bloom|cerebras] [--runs 3]

Side by side, on one random float16 checkpoint: transformers' own 8-bit load of
it, our first load, which makes the int8 store, our second load, which reads it,
and `dd` reading the store's bytes. Each load is a process of its own that has
imported everything and loaded a tiny model the same way before the clock
starts. "ready" is the load and one forward pass of one token: mapped weights
are read on their first use, and a figure without that would flatter. Memory is
the peak of RssAnon above what it was when the clock started. Before each run
the files are dropped from the page cache, and it is said where that failed;
what lies beneath, such as a virtual disk's cache, stays as it is.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import BloomConfig, GPT2Config, GPTNeoXConfig

from benchmarks.one_load import Cost
from tests.random_checkpoints import write_random_checkpoint
from tests.tiny_checkpoints import save_random_checkpoint

ROOT = Path(__file__).resolve().parents[1]
MIB, MB = 2**20, 10**6
WIDTH = 2048
# Matrices of 12 x width x width, in float16.
BLOCK_BYTES = 12 * WIDTH * WIDTH * 2
LOADS = {
    "transformers": "transformers, 8-bit, of the checkpoint",
    "first": "first load: prepare, then load",
    "second": "second load: of the store",
}
# Of a checkpoint's bytes, what is in tables of the vocabulary, as in bloom-7b1,
# gpt-neox-20b and Cerebras-GPT-13B; and how many such tables there are.
TABLES = {"bloom": (0.145, 1), "gpt-neox": (0.03, 2), "cerebras": (0.02, 1)}


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="tgp-bench-", dir=arguments.folder) as name:
        compare(Path(name), arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What loading a model costs.")
    parser.add_argument("--megabytes", type=int, default=1200, help="of the float16 checkpoint")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--family", choices=sorted(TABLES), default="gpt-neox")
    parser.add_argument("--runs", type=int, default=3, help="the medians are shown")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    return parser.parse_args()


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    config = config_of(arguments.family, arguments.megabytes * MB)
    size = write_random_checkpoint(config, folder / "checkpoint")
    save_random_checkpoint(f"tiny-{arguments.family}", folder / "tiny")
    costs: dict[str, list[Cost]] = {load: [] for load in LOADS}
    dd_seconds, was_warm = [], False
    for _ in range(arguments.runs):
        shutil.rmtree(folder / "stores", ignore_errors=True)
        for load in LOADS:
            was_warm |= not drop_from_page_cache(weight_files(folder))
            costs[load].append(in_own_process(load, folder, arguments.device))
        store = weight_files(folder / "stores")
        was_warm |= not drop_from_page_cache(store)
        dd_seconds.append(read_with_dd(store))
    print(f"{arguments.family}, {size / MB:.0f} MB in float16, on {arguments.device}")
    print(f"page cache: {'NOT dropped, files may have been in memory' if was_warm else 'dropped'}")
    show(costs, statistics.median(dd_seconds), sum(file.stat().st_size for file in store))


def config_of(family: str, size: int) -> Any:
    """A configuration whose float16 checkpoint has about this many bytes."""
    share, tables = TABLES[family]
    vocabulary = max(8, int(size * share / tables / (2 * WIDTH) / 64)) * 64
    layers = max(1, round(size * (1 - share) / BLOCK_BYTES))
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    if family == "bloom":
        return BloomConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, n_layer=layers, n_head=16, **ends
        )
    if family == "cerebras":
        return GPT2Config(vocab_size=vocabulary, n_embd=WIDTH, n_layer=layers, n_head=16, **ends)
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=16,
        **ends,
    )


def weight_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def drop_from_page_cache(files: Iterable[Path]) -> bool:
    """Whether no page of these files is in memory any more."""
    dropped = True
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # a page that is not written yet is not dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            dropped &= cached_pages(descriptor) == 0
        finally:
            os.close(descriptor)
    return dropped


def cached_pages(descriptor: int) -> int:
    """Pages of a file in the page cache, by mincore(2)."""
    size = os.fstat(descriptor).st_size
    # A private mapping that may be written, only because ctypes wants that.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE) as mapped:
        pages = -(-size // mmap.PAGESIZE)
        in_memory = (ctypes.c_ubyte * pages)()
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        del first
        status = ctypes.CDLL(None, use_errno=True).mincore(
            address, ctypes.c_size_t(size), in_memory
        )
        if status != 0:
            raise OSError(ctypes.get_errno(), "mincore failed")
        return sum(page & 1 for page in in_memory)


def in_own_process(load: str, folder: Path, device: str) -> Cost:
    command = [sys.executable, "-m", "benchmarks.one_load", load, str(folder), device]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return Cost(**json.loads(run.stdout))


def read_with_dd(files: Iterable[Path]) -> float:
    started = time.perf_counter()
    for file in files:
        command = ["dd", f"if={file}", "of=/dev/null", "bs=8M"]
        subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def show(costs: dict[str, list[Cost]], dd_seconds: float, store_bytes: int) -> None:
    columns = ("load s", "ready s", "load MiB", "ready MiB")
    print(f"{'':40}" + "".join(f"{column:>11}" for column in columns))
    medians = {load: median(each) for load, each in costs.items()}
    for load, title in LOADS.items():
        cost = medians[load]
        seconds = f"{cost.load_seconds:11.2f}{cost.ready_seconds:11.2f}"
        memory = f"{cost.load_peak_bytes / MIB:11.0f}{cost.ready_peak_bytes / MIB:11.0f}"
        print(f"{title:40}{seconds}{memory}")
    speed = store_bytes / MB / dd_seconds
    print(f"{f'dd of the store, {store_bytes / MB:.0f} MB':40}{dd_seconds:11.2f}", end="")
    print(f"{'':11}   ({speed:.0f} MB/s)")
    theirs, second = medians["transformers"], medians["second"]
    ratios = {
        "transformers / second load": (
            theirs.load_seconds / second.load_seconds,
            theirs.ready_seconds / second.ready_seconds,
        ),
        "second load / dd": (second.load_seconds / dd_seconds, second.ready_seconds / dd_seconds),
    }
    for title, (loaded, ready) in ratios.items():
        print(f"{title:40}{loaded:11.2f}{ready:11.2f}")


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        load_seconds=statistics.median(cost.load_seconds for cost in costs),
        ready_seconds=statistics.median(cost.ready_seconds for cost in costs),
        load_peak_bytes=max(cost.load_peak_bytes for cost in costs),
        ready_peak_bytes=max(cost.ready_peak_bytes for cost in costs),
    )


if __name__ == "__main__":
    main()
