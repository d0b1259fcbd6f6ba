"""What the engine is told of a catalogue entry."""

from __future__ import annotations

from engine.interface import ModelSource
from jobs.catalogue import CatalogueModel


def source_of(model: CatalogueModel) -> ModelSource:
    """Where the engine finds a model; the engine itself knows no catalogue."""
    return ModelSource(
        alias=model.alias,
        hub_id=model.hub_id,
        folder=model.folder,
        revision=model.revision,
        context_tokens=model.context_tokens,
    )
