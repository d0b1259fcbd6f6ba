"""A model's int8 store for the device that computes, made on first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from worker.engine.checkpoint import Checkpoint
from worker.engine.checkpoint_tensors import StoreUnsupportedError
from worker.engine.engine import LoadProgress, ModelSource
from worker.engine.int8_model import DeviceChoice, choose_device, plain_dtype
from worker.engine.int8_store import Int8Store, is_int8_store, prepare_store, store_of_checkpoint


def store_for(
    source: ModelSource,
    checkpoint: Checkpoint,
    stores: Path,
    device: torch.device,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> Int8Store | None:
    """The checkpoint's int8 store, made on first use; None where it needs or allows none.

    Raises:
        ModelLoadError: The store cannot be made, as on a full disk.
        LoadInterruptedError: should_stop() turned true; the next call goes on.
    """
    if is_int8_store(checkpoint):
        return None
    try:
        return store_of_checkpoint(
            source,
            checkpoint,
            stores,
            device=device,
            on_progress=on_progress,
            should_stop=should_stop,
            dtype=plain_dtype(device),
        )
    except StoreUnsupportedError:
        return None


def prepare_for(
    device: DeviceChoice,
    source: ModelSource,
    stores: Path,
    *,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
) -> Int8Store:
    """Make the store that load_engine would take on this device; see prepare_store.

    transformers casts a store's biases to the dtype it loads in but not its
    norms, so a store holds the dtype that is computed in.
    """
    chosen = choose_device(device)
    return prepare_store(
        source,
        stores,
        device=chosen,
        on_progress=on_progress,
        should_stop=should_stop,
        dtype=plain_dtype(chosen),
    )
