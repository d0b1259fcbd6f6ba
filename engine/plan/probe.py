"""Measures in about a second how fast this machine copies, reads and multiplies."""

from __future__ import annotations

import json
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from engine.plan.rates import T4, Throughputs

COPY_BYTES = 256 * 2**20


DISK_BYTES = 256 * 2**20


READ_BYTES = 8 * 2**20


PROBE_SECONDS = 0.2


# Rows of a matrix product that stand for decoding, and for prefill.
DECODE_ROWS, PREFILL_ROWS = 32, 2048


MATRIX_SIZE = 4096


def gpu_throughputs(cache: Path, stores: Path, *, again: bool = False) -> Throughputs:
    """This machine's rates, measured once and kept in a file.

    Args:
        cache: Where they are kept; measured again for another card or folder.
        stores: The folder that will be read from.
        again: Whether to measure although they are there.
    """
    name = f"measured: {torch.cuda.get_device_name(0)}, disk of {stores}"
    kept = None if again else read_throughputs(cache)
    if kept is not None and kept.name == name:
        return kept
    measured = replace(
        T4,
        name=name,
        link_bytes_per_second=_link_bytes_per_second(),
        disk_bytes_per_second=disk_bytes_per_second(stores),
        memory_bytes_per_second=_memory_bytes_per_second(),
        prefill_flops_per_second=_flops_per_second(PREFILL_ROWS),
        decode_flops_per_second=_flops_per_second(DECODE_ROWS),
    )
    write_throughputs(cache, measured)
    return measured


def read_throughputs(cache: Path) -> Throughputs | None:
    """What was measured before; None if there is nothing that can be used."""
    try:
        kept = Throughputs(**json.loads(cache.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    rates = [value for name, value in asdict(kept).items() if name != "name"]
    usable = all(isinstance(rate, int | float) and rate > 0 for rate in rates)
    return kept if usable else None


def write_throughputs(cache: Path, measured: Throughputs) -> None:
    """Keep what was measured; whole or not at all."""
    cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(measured), indent=2), encoding="utf-8")
    partial.replace(cache)


def disk_bytes_per_second(folder: Path) -> float:
    """How fast a file in this folder is read, past the page cache.

    Writes a file of 256 MiB there and removes it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as file:
        # Not zeros, which some disks do not store.
        chunk = os.urandom(READ_BYTES)
        for _ in range(DISK_BYTES // READ_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
        return _read_bytes_per_second(Path(file.name))


def _read_bytes_per_second(path: Path) -> float:
    descriptor = _open_past_cache(path)
    # O_DIRECT wants aligned memory, which a mapping is.
    with mmap.mmap(-1, READ_BYTES) as buffer:
        try:
            start, read = time.perf_counter(), 0
            while count := os.readv(descriptor, [buffer]):
                read += count
            return read / (time.perf_counter() - start)
        finally:
            os.close(descriptor)


def _open_past_cache(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # tmpfs and some network file systems have none
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return descriptor


def _link_bytes_per_second() -> float:
    pinned = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    on_gpu = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    return COPY_BYTES / _gpu_seconds(lambda: on_gpu.copy_(pinned, non_blocking=True))


def _memory_bytes_per_second() -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    # Each byte is read and written.
    return 2 * COPY_BYTES / _gpu_seconds(lambda: target.copy_(source))


def _flops_per_second(rows: int) -> float:
    """Rate of a float16 product [rows, size] x [size, 4 size]: what int8 falls back on."""
    left = torch.ones(rows, MATRIX_SIZE, dtype=torch.float16, device="cuda")
    right = torch.ones(MATRIX_SIZE, 4 * MATRIX_SIZE, dtype=torch.float16, device="cuda")
    flops = 2 * rows * MATRIX_SIZE * 4 * MATRIX_SIZE
    return flops / _gpu_seconds(lambda: torch.mm(left, right))


def _gpu_seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call, from as many as fit into a fifth of a second."""
    work()
    torch.cuda.synchronize()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < PROBE_SECONDS:
        work()
        torch.cuda.synchronize()
        calls += 1
    return (time.perf_counter() - start) / calls
