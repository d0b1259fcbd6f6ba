"""Which device computes, in which float type, and giving memory back to it."""

from __future__ import annotations

import ctypes
import gc
from typing import Literal

import torch

from engine.interface import ModelLoadError

DeviceChoice = Literal["auto", "cuda", "cpu"]


def choose_device(choice: DeviceChoice) -> torch.device:
    """The device to load on.

    Raises:
        ModelLoadError: CUDA was asked for and there is none.
    """
    if choice == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if choice == "cuda":
        raise ModelLoadError(
            "the worker was told to use CUDA, and torch sees no CUDA device; install a driver "
            "and a CUDA build of torch, or set the device to auto or cpu"
        )
    return torch.device("cpu")


def plain_dtype(device: torch.device) -> torch.dtype:
    """What is not int8 is kept in: float16 on a GPU, float32 on a CPU.

    float16 and not bfloat16, which a T4 emulates. On a CPU both took 16 ms a
    step on four layers of width 512, and float32 cannot overflow.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def free_unused_memory() -> None:
    """Give back what no tensor uses any more, on the device and on the host."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _trim_heap()


def _trim_heap() -> None:
    """Give free pages of the C library's heap back to the system, where it offers that (glibc).

    By itself it gives back the heap's end only, up to the last thing that is
    still in use. So what one model had freed stayed with the process, and the
    budget of the next was that much smaller.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
