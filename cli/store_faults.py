"""Half-made and damaged int8 copies of models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cli.faults import Fault
from jobs.settings import Settings

PARTIAL = ".partial"


def half_made_stores(settings: Settings) -> list[Path]:
    """The unfinished copies, whether somebody is making them or not."""
    if not settings.stores_path.is_dir():
        return []
    return sorted(path for path in settings.stores_path.glob(f"*{PARTIAL}") if path.is_dir())


def store_faults(settings: Settings, busy_models: set[str], *, thorough: bool) -> Iterator[Fault]:
    """Copies that are no use, and nobody is working on them.

    Args:
        settings: Say where copies are.
        busy_models: Models that a worker is loading; theirs are left alone.
        thorough: Also half-made ones that could be gone on with, and finished
            ones with damaged files, for which every byte is read.
    """
    from engine.store.care import damaged_files, is_being_made, is_resumable

    for folder in half_made_stores(settings):
        if is_being_made(folder) or not (thorough or not is_resumable(folder)):
            continue
        use = "that could be gone on with" if is_resumable(folder) else "that nothing can be had of"
        yield Fault(
            kind="half_made_store",
            subject=str(folder),
            found=f"an unfinished int8 copy {use}; nobody is making it",
            mend="delete it",
            repair=partial(_delete_half_made, folder),
        )
    if thorough:
        for folder in finished_stores(settings):
            alias = folder.name.rpartition("-")[0]
            if alias not in busy_models and (names := damaged_files(folder)):
                yield Fault(
                    kind="damaged_store",
                    subject=str(folder),
                    found=f"damaged: {', '.join(names)}",
                    mend="set it back to half made without them; the next load makes them again",
                    repair=partial(_set_back, folder),
                )


def finished_stores(settings: Settings) -> list[Path]:
    """The folders of copies that were finished."""
    if not settings.stores_path.is_dir():
        return []
    found = (path for path in settings.stores_path.iterdir() if path.is_dir())
    return sorted(path for path in found if path.suffix != PARTIAL)


def _delete_half_made(folder: Path) -> bool:
    from engine.store.care import held

    with held(folder) as is_ours:
        if not is_ours or not folder.exists():
            return False
        shutil.rmtree(folder)
        return True


def _set_back(folder: Path) -> bool:
    from engine.store.care import damaged_files, held, set_back

    with held(folder) as is_ours:
        if not is_ours or not (names := damaged_files(folder)):
            return False
        set_back(folder, names)
        return True
