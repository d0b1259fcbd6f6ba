"""The int8 store: a checkpoint made int8 once, block by block, in bounded memory.

A store is a folder in the Hugging Face layout for bitsandbytes int8, one
safetensors file per transformer block, that plain from_pretrained loads. It is
made in a folder beside it, whose finished files a manifest lists, and gets its
name only when it is complete.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.folder import Checkpoint, open_checkpoint
from engine.checkpoint.tensors import StoreUnsupportedError
from engine.device import DeviceChoice, choose_device, plain_dtype
from engine.interface import LoadProgress, ModelLoadError, ModelSource
from engine.layout.blocks import ModelLayout
from engine.layout.support import require_supported
from engine.store.contents import contents_of
from engine.store.lock import partial_folder, store_lock
from engine.store.maker import StoreMaker
from engine.store.manifest import (
    StoreManifest,
    StoreOrigin,
    origin_of,
    read_manifest,
    store_folder,
    sync_folder,
)
from engine.store.write import TensorStream

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, kw_only=True)
class Int8Store:
    """A complete store of a model.

    Attributes:
        alias: The model's alias, for messages.
        checkpoint: The folder of the checkpoint, which has the generation settings
            as they are now; the store has them as they were when it was made.
        config: The transformers configuration of its checkpoint.
        folder: The folder that holds the files.
        manifest: The content of tgp_store.json.
        layout: The tensors that the engine reads, from the manifest.
        was_there: Whether it was complete already.
    """

    alias: str
    checkpoint: Path
    config: Any
    folder: Path
    manifest: StoreManifest
    layout: ModelLayout
    was_there: bool

    @property
    def bytes(self) -> int:
        """Bytes of all files on disk."""
        return sum(file.bytes for file in self.manifest.files.values())


def prepare_store(
    source: ModelSource,
    stores: Path,
    *,
    device: torch.device,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
    dtype: torch.dtype | None = None,
) -> Int8Store:
    """Make a model's store, go on with one that was interrupted, or find it made.

    Args:
        source: The model; downloaded if need be.
        stores: The folder of all stores.
        device: The device that quantises.
        on_progress: Told stage "prepare" in bytes of tensors on disk, the first
            time before anything is written; "waiting" while another process
            makes the same store.
        should_stop: Asked after every few rows.
        dtype: Dtype of what is not int8; None for the checkpoint's own.

    Raises:
        ModelLoadError: There is no such checkpoint, the disk has no room, or
            the checkpoint is int8 already.
        StoreUnsupportedError: It may be loaded, but no store can be made of it.
        LoadInterruptedError: should_stop() turned true; the next call goes on.
    """
    checkpoint = open_checkpoint(
        source, on_progress=on_progress, should_stop=should_stop, accept=require_supported
    )
    return store_of_checkpoint(
        source,
        checkpoint,
        stores,
        device=device,
        on_progress=on_progress,
        should_stop=should_stop,
        dtype=dtype,
    )


def store_of_checkpoint(
    source: ModelSource,
    checkpoint: Checkpoint,
    stores: Path,
    *,
    device: torch.device,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
    dtype: torch.dtype | None = None,
) -> Int8Store:
    """Make or find the store of an open checkpoint; see prepare_store."""
    if is_int8_store(checkpoint):
        raise ModelLoadError(f"{checkpoint.folder} is quantised already; it is used as it is")
    origin = origin_of(source, checkpoint, dtype)
    folder = store_folder(stores, source, origin)
    if store := find_store(folder, origin, source, checkpoint):
        return store
    making = partial_folder(folder)
    try:
        stores.mkdir(parents=True, exist_ok=True)
        with store_lock(
            folder,
            on_wait=lambda: _report_waiting(making, on_progress),
            should_stop=should_stop,
        ):
            # Made by the process that was waited for.
            if store := find_store(folder, origin, source, checkpoint):
                return store
            plan = contents_of(checkpoint, dtype=dtype)
            stream = TensorStream(plan=plan, tensors=checkpoint.tensors, device=device)
            maker = StoreMaker(making, origin, plan, on_progress, should_stop)
            shutil.rmtree(folder, ignore_errors=True)  # of another origin, or not whole
            manifest = maker.make(checkpoint, stream)
            making.rename(folder)
            sync_folder(stores)
    except OSError as error:
        raise ModelLoadError(_not_written(making, error)) from error
    return Int8Store(
        alias=source.alias,
        checkpoint=checkpoint.folder,
        config=checkpoint.config,
        folder=folder,
        manifest=manifest,
        layout=plan.layout,
        was_there=False,
    )


def is_int8_store(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint is quantised as it is."""
    return getattr(checkpoint.config, "quantization_config", None) is not None


def find_store(
    folder: Path, origin: StoreOrigin, source: ModelSource, checkpoint: Checkpoint
) -> Int8Store | None:
    """The complete store in a folder, if it has this origin and all its files."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.layout is None or manifest.origin != origin:
        return None
    if manifest.intact_files(folder) != set(manifest.files):
        return None
    return Int8Store(
        alias=source.alias,
        checkpoint=checkpoint.folder,
        config=checkpoint.config,
        folder=folder,
        manifest=manifest,
        layout=manifest.layout,
        was_there=True,
    )


def _report_waiting(making: Path, on_progress: Callable[[LoadProgress], None]) -> None:
    """Say how far the process is that makes the store we wait for."""
    manifest = read_manifest(making)
    total = 1 if manifest is None else manifest.total_bytes
    done = 0 if manifest is None else sum(file.bytes for file in manifest.files.values())
    on_progress(LoadProgress(stage="waiting", done=min(done, total), total=total, unit="bytes"))


def _not_written(making: Path, error: OSError) -> str:
    if error.errno in _FULL_DISK:
        return (
            f"the disk is full: {making} is not finished; free some room, or choose another place "
            "for stores, and try again: it goes on from the last finished block"
        )
    return f"the int8 store {making} cannot be written: {error}"


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
