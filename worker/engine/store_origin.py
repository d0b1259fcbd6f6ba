"""Where a store comes from, and where it goes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from worker.engine.checkpoint import Checkpoint
from worker.engine.engine import ModelSource
from worker.engine.model_skeleton import int8_settings
from worker.engine.store_manifest import StoreOrigin

# The hub library keeps a commit's files in models--.../snapshots/<commit>.
_SNAPSHOTS = "snapshots"


def origin_of(
    source: ModelSource, checkpoint: Checkpoint, dtype: torch.dtype | None
) -> StoreOrigin:
    """What a store made of this checkpoint now would say of itself."""
    folder = checkpoint.folder
    is_snapshot = source.hub_id is not None and folder.parent.name == _SNAPSHOTS
    return StoreOrigin(
        location=source.hub_id or str(folder.resolve()),
        commit=folder.name if is_snapshot else None,
        fingerprint=_fingerprint(checkpoint, with_times=not is_snapshot),
        quantisation=int8_settings().to_dict(),
        dtype="auto" if dtype is None else str(dtype).removeprefix("torch."),
    )


def store_folder(stores: Path, source: ModelSource, origin: StoreOrigin) -> Path:
    """The folder of a store: stays the same when the checkpoint changes."""
    return stores / f"{source.alias}-{origin.digest}"


def _fingerprint(checkpoint: Checkpoint, *, with_times: bool) -> str:
    """A digest of the files' names and sizes, and of when they were changed.

    Times are left out where a commit names the contents: the same commit
    downloaded again is the same model.
    """
    digest = hashlib.sha256()
    for file in (checkpoint.folder / "config.json", *checkpoint.weight_files):
        facts = file.stat()
        changed = facts.st_mtime_ns if with_times else 0
        digest.update(f"{file.name}\0{facts.st_size}\0{changed}\n".encode())
    return digest.hexdigest()
