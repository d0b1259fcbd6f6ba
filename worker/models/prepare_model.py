"""Making a catalogue model's int8 store outside a worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engine.interface import LoadProgress
from jobs.catalogue import CatalogueModel
from jobs.settings import Settings
from worker.models.model_source import source_of


@dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A complete store.

    Attributes:
        folder: Where it is.
        bytes: On disk.
        was_there: Whether nothing had to be done.
        damaged: Names of files that are not as they were written; None if
            nobody looked.
    """

    folder: Path
    bytes: int
    was_there: bool
    damaged: tuple[str, ...] | None


def prepare_model(
    settings: Settings,
    model: CatalogueModel,
    *,
    verify: bool,
    on_progress: Callable[[LoadProgress], None],
) -> PreparedModel:
    """Make the store that a worker with these settings would load, or find it.

    Raises:
        ModelLoadError: It cannot be made; what is finished is kept.
    """
    from engine.store.manifest import damaged_files
    from engine.store.prepare import prepare_for

    store = prepare_for(
        settings.device,
        source_of(model),
        settings.stores_path,
        on_progress=on_progress,
        should_stop=_never,
    )
    damaged = None
    if verify:
        damaged = tuple(
            damaged_files(store.folder, store.manifest, on_progress=on_progress, should_stop=_never)
        )
    return PreparedModel(
        folder=store.folder, bytes=store.bytes, was_there=store.was_there, damaged=damaged
    )


def _never() -> bool:
    """Ctrl-C may come anywhere: a store is only trusted when it is complete."""
    return False
