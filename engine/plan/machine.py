"""What this machine has to give: the budgets of a plan where none are named.

Host memory is what the control group allows before what the machine has,
because a container is killed at its own limit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from engine.plan.plan import Budgets
from engine.plan.rates import GIB

# Beside the CUDA context, which free memory is counted after: cuBLAS workspaces
# and what the allocator loses between blocks.
GPU_MARGIN_BYTES = GIB // 2


# The worker's own: Python, torch with its CUDA libraries, the tokenizer, the prompts.
CPU_MARGIN_BYTES = 3 * GIB // 2


# The ledger, logs, and a file system that is not filled to the brim.
DISK_MARGIN_BYTES = GIB


# cgroup v1 says "no limit" with the largest number of whole pages.
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True, kw_only=True)
class _MemoryFiles:
    """Where one control group keeps its limit and its use."""

    limit: PurePosixPath
    usage: PurePosixPath
    stat: PurePosixPath
    cache_keys: tuple[str, ...]


def machine_budgets(stores: Path, *, on_gpu: bool) -> Budgets:
    """What is free on this machine, less the margins.

    Args:
        stores: The folder of int8 stores; it need not exist yet.
        on_gpu: Whether a GPU computes; makes a CUDA context.
    """
    free_gpu_bytes = _free_gpu_bytes() if on_gpu else None
    folder = next(each for each in (stores, *stores.parents) if each.is_dir())
    return Budgets(
        gpu_bytes=None if free_gpu_bytes is None else max(0, free_gpu_bytes - GPU_MARGIN_BYTES),
        cpu_bytes=max(0, free_memory_bytes() - CPU_MARGIN_BYTES),
        disk_bytes=max(0, shutil.disk_usage(folder).free - DISK_MARGIN_BYTES),
    )


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    return torch.cuda.is_available()


def _free_gpu_bytes() -> int:
    # Makes the context, so its own memory is gone from what is free.
    free, _ = torch.cuda.mem_get_info(0)
    return int(free)


def free_memory_bytes(root: Path = Path("/")) -> int:
    """The least of what the machine and the control groups of this process have left.

    Args:
        root: Where /proc and /sys are.
    """
    available = available_bytes((root / "proc/meminfo").read_text())
    groups = _read(root, PurePosixPath("proc/self/cgroup")) or ""
    left = [_left_in(root, files) for files in _memory_files(groups)]
    return max(0, min([available, *(each for each in left if each is not None)]))


def available_bytes(meminfo: str) -> int:
    """MemAvailable of /proc/meminfo: what could be had without swapping."""
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise ValueError("/proc/meminfo has no MemAvailable: Linux 3.14 or newer is needed")


def _memory_files(groups: str) -> Iterator[_MemoryFiles]:
    """The files of a process's control groups and all above them.

    Args:
        groups: The text of /proc/self/cgroup, lines of ``id:controllers:path``
            (cgroups(7)). Version 2 has id 0 and names no controllers.
    """
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        own = PurePosixPath(path.lstrip("/"))
        for group in (own, *own.parents) if path != "/" else (own,):
            if number == "0" and not controllers:
                folder = PurePosixPath("sys/fs/cgroup") / group
                yield _MemoryFiles(
                    limit=folder / "memory.max",
                    usage=folder / "memory.current",
                    stat=folder / "memory.stat",
                    cache_keys=("inactive_file", "active_file"),
                )
            elif "memory" in controllers.split(","):
                folder = PurePosixPath("sys/fs/cgroup/memory") / group
                yield _MemoryFiles(
                    limit=folder / "memory.limit_in_bytes",
                    usage=folder / "memory.usage_in_bytes",
                    stat=folder / "memory.stat",
                    cache_keys=("total_inactive_file", "total_active_file"),
                )


def _left_in(root: Path, files: _MemoryFiles) -> int | None:
    """What a control group may still take; None if it has no limit."""
    limit = (_read(root, files.limit) or "max").strip()
    if limit == "max" or int(limit) >= _NO_LIMIT_BYTES:
        return None
    usage = int(_read(root, files.usage) or 0)
    # The page cache is counted as use and given back when it is asked for.
    stat = dict(line.split() for line in (_read(root, files.stat) or "").splitlines())
    return int(limit) - usage + sum(int(stat.get(key, 0)) for key in files.cache_keys)


def _read(root: Path, path: PurePosixPath) -> str | None:
    try:
        return (root / path).read_text()
    except OSError:
        # Not mounted, or in a namespace where the path means something else.
        return None
