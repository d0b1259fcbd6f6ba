"""A model larger than its memory: our streaming beside what the stock libraries do.

    python -m benchmarks.offload [--family bloom|gpt-neox|cerebras] [--gigabytes 1.5]
    python -m benchmarks.offload --device cuda [--model gpt-neox-20b]
                                 [--cpu-memory 12.7GiB|unlimited] [--batch 32] [--dry-run]

On a CPU: a random model of each decoder family that has so many bytes as int8,
under a RAM budget of a third of it, beside accelerate's disk offload of
the same weights in bfloat16 and in float32. Ours is the engine that a worker
runs, accelerate's is driven by generate(); as many prompt and new tokens of
each, each in a process of its own, one after another. "cold" drops a block's
file from the page cache after each use, as memory no larger than the budget
would; "warm" has every file in it, which takes more memory than the budget
says. The budget is enforced on ours with RLIMIT_DATA (private memory that may
be written, mapped files included) and 256 MiB more, for address space that
libraries never touch. accelerate is told the budget as max_memory; under that
limit it fails, because safetensors maps its files as memory of that kind. "RAM
MiB" is the peak of RssAnon above what was held before the load, "mapped" what
of the store's files a plan of ours keeps in memory beside it: together they are
to be below the budget. "CPU s" is the processor time of a step, which a busy box does not
stretch.

On a GPU: see benchmarks.offload.on_gpu.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import BloomConfig, GPT2Config, GPTNeoXConfig

from benchmarks.offload.bookkeeping import bookkeeping_seconds
from benchmarks.offload.contest import contest, show_ratios
from benchmarks.offload.contestant import Run
from benchmarks.offload.on_gpu import compare_on_gpu
from benchmarks.offload.random_model import random_model
from benchmarks.offload.ways import OURS, open_folder

GB = 10**9
WIDTH = 2048
BLOCK_BYTES = 12 * WIDTH * WIDTH
VOCABULARY = 8192
FAMILIES = ("bloom", "gpt-neox", "cerebras")
TINY_GIGABYTES, TINY_WIDTH = 0.02, 256
WANTED = 3.0
PROMPT_TOKENS, NEW_TOKENS = 32, 8
KV_CACHES = ("float", "int8")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="tgp-bench-", dir=arguments.folder) as name:
        if arguments.device == "cuda":
            compare_on_gpu(Path(name), arguments)
            return
        for family in [arguments.family] if arguments.family else FAMILIES:
            compare_on_cpu(Path(name) / family, family, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A model larger than its memory.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    parser.add_argument("--prompt-tokens", type=int, help="32 on a CPU, 64 on a GPU")
    parser.add_argument("--new-tokens", type=int, help="8 on a CPU, 32 on a GPU")
    on_cpu = parser.add_argument_group("on a CPU")
    on_cpu.add_argument("--family", choices=FAMILIES, help="all three, if left out")
    on_cpu.add_argument("--gigabytes", type=float, default=1.5, help="of int8 weights")
    on_cpu.add_argument("--modes", nargs="+", choices=OURS, default=list(OURS))
    on_cpu.add_argument("--kv-caches", nargs="+", choices=KV_CACHES, default=list(KV_CACHES))
    on_cpu.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    on_cpu.add_argument("--page-cache", nargs="+", default=["cold", "warm"])
    on_gpu = parser.add_argument_group("on a GPU")
    on_gpu.add_argument("--model", help="one of the shapes; all four, if left out")
    on_gpu.add_argument("--gpu-memory", default="15GiB")
    on_gpu.add_argument("--cpu-memory", help="12.7GiB, unlimited, ...; both, if left out")
    on_gpu.add_argument("--dry-run", action="store_true", help="tiny models, on the CPU")
    parser.add_argument("--batch", type=int, help="rows; 8 on a CPU, 32 on a GPU")
    return parser.parse_args()


def compare_on_cpu(folder: Path, family: str, arguments: argparse.Namespace) -> None:
    model = random_model(config_of(family, arguments.gigabytes, WIDTH), torch.bfloat16)
    tiny = random_model(config_of(family, TINY_GIGABYTES, TINY_WIDTH), torch.bfloat16)
    for each, name in ((model, "model"), (tiny, "tiny")):
        cpu, store = torch.device("cpu"), folder / name / "store"
        each.write_store(store, device=cpu, dtype=torch.float32)
        for dtype in arguments.dtypes:
            each.write_checkpoint(folder / name / dtype, getattr(torch, dtype))
        if name == "model":
            # Without the float32 copies that are there for plain transformers.
            model_bytes = open_folder(store).layout.int8_bytes
    rows, budget = arguments.batch or 8, model_bytes // 3
    prompt_tokens = arguments.prompt_tokens or PROMPT_TOKENS
    new_tokens = arguments.new_tokens or NEW_TOKENS
    print(
        f"\n{family}: {model_bytes / GB:.2f} GB as int8, budget {budget / GB:.2f} GB, "
        f"{rows} rows of {prompt_tokens} + {new_tokens} tokens"
    )

    def run(way: Any, page_cache: str, **changes: Any) -> Run:
        options: dict[str, Any] = {"cpu_bytes": budget, "page_cache": page_cache, **changes}
        return Run(
            way=way,
            folder=str(folder / "model"),
            tiny=str(folder / "tiny"),
            rows=rows,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            **options,
        )

    ours = {
        f"{mode}, {kv_cache} KV": (mode, kv_cache)
        for mode in arguments.modes
        for kv_cache in arguments.kv_caches
    }
    runs = {}
    for state in arguments.page_cache:
        for title, (mode, kv_cache) in ours.items():
            runs[f"{title}, {state}"] = run(mode, state, kv_cache=kv_cache)
        runs |= {f"{dtype}, {state}": run(dtype, state) for dtype in arguments.dtypes}
    whole = "llm_int8, all resident"
    runs[whole] = run("llm_int8", "warm", tiers="resident", cpu_bytes=None)
    speeds = contest(runs)
    for state in arguments.page_cache:
        for title in ours:
            theirs = {f"{dtype}, {state}": WANTED for dtype in arguments.dtypes}
            show_ratios(speeds, f"{title}, {state}", theirs)
    if whole in speeds:
        blocks = model.config.num_hidden_layers
        show_bookkeeping(blocks, speeds[whole].step_seconds)


def show_bookkeeping(blocks: int, step_seconds: float) -> None:
    seconds = bookkeeping_seconds(blocks)
    print(
        f"bookkeeping of {blocks} streamed blocks: {seconds * 1000:.2f} ms a pass, "
        f"{seconds / step_seconds:.2%} of a step with everything resident (wanted: 2 %)"
    )


def config_of(family: str, gigabytes: float, width: int) -> Any:
    """A configuration whose layers have about this many bytes as int8."""
    layers = max(2, round(gigabytes * GB / (12 * width * width)))
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    # A smaller vocabulary than BLOOM's: a head is placed as a whole, in
    # float32 on a CPU, and BLOOM's share of a model is more than the budget.
    if family == "bloom":
        return BloomConfig(
            vocab_size=VOCABULARY, hidden_size=width, n_layer=layers, n_head=16, **ends
        )
    if family == "cerebras":
        return GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=16, **ends)
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=16,
        **ends,
    )


if __name__ == "__main__":
    main()
