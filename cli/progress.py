"""How far a job is while somebody waits for it: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cli.job_document import speed_text, state_text
from cli.output import console, note
from jobs.store.records import JobReport, ModelState

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# In a log file a line every half second would be noise.
LINE_SECONDS = 10.0


class JobProgress:
    """Shows a job's progress on stderr; a context manager, since a bar must be taken down."""

    def __init__(self) -> None:
        self._bar: tuple[Progress, TaskID] | None = None
        self._last_line = ""
        self._last_line_at = float("-inf")

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _started_bar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def show(self, job: JobReport, state: ModelState | None = None) -> None:
        """Bring the display up to date."""
        doing = _doing_text(job, state)
        if self._bar is not None:
            progress, task = self._bar
            progress.update(
                task, total=job.total, completed=job.completed + job.failed, doing=doing
            )
            return
        done = job.completed + job.failed
        line = f"job {job.id}: {done} of {job.total} prompts, {doing}"
        now = time.monotonic()
        is_due = job.ended or now - self._last_line_at >= LINE_SECONDS
        if is_due and line != self._last_line:
            note(line)
            self._last_line, self._last_line_at = line, now


def _started_bar() -> tuple[Progress, TaskID]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        # A worker's words, not ours: rich must not read markup in them.
        TextColumn("{task.fields[doing]}", markup=False),
        console=console(stderr=True),
    )
    task = progress.add_task("", total=None, doing="")
    progress.start()
    return progress, task


def _doing_text(job: JobReport, state: ModelState | None) -> str:
    parts: list[str] = [job.status]
    if job.failed:
        parts.append(f"{job.failed} failed")
    if not job.ended and state is not None and state.state != "loaded":
        parts.append(f"model {state_text(state)}")
    if speed := speed_text(job):
        parts.append(speed)
    return ", ".join(parts)
