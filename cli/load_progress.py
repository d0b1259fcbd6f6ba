"""How far a model is on its way: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cli.output import console, note
from cli.stderr_bar import LINE_SECONDS, StderrBar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from engine.interface import LoadProgress

DOING = {
    "download": "downloading",
    "prepare": "making the int8 copy",
    "waiting": "waiting for another process that makes the int8 copy",
    "verify": "comparing checksums",
}


class LoadProgressDisplay(StderrBar):
    """Shows LoadProgress on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._stage = ""

    def _make_bar(self) -> tuple[Progress, TaskID]:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        progress = Progress(
            TextColumn("{task.fields[doing]}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console(stderr=True),
        )
        return progress, progress.add_task("", total=None, doing="looking at the checkpoint")

    def show(self, state: LoadProgress) -> None:
        """Bring the display up to date."""
        doing = DOING.get(state.stage, state.stage)
        if self._bar is not None:
            progress, task = self._bar
            if state.stage != self._stage:
                # A new stage is new work: its speed starts afresh.
                progress.reset(task, total=state.total, doing=doing)
            progress.update(task, total=state.total, completed=state.done)
        else:
            now = time.monotonic()
            if state.stage != self._stage or now - self._last_line_at >= LINE_SECONDS:
                note(f"{doing}: {size_text(state.done)} of {size_text(state.total)}")
                self._last_line_at = now
        self._stage = state.stage


def size_text(count: int) -> str:
    """Bytes as a person says them, such as "7.5 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
