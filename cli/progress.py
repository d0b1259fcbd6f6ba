"""How far a job is while somebody waits for it: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cli.job_document import speed_text, state_text
from cli.output import console, note, printable
from cli.stderr_bar import LINE_SECONDS, StderrBar
from jobs.store.reports import JobReport, ModelState

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class JobProgress(StderrBar):
    """Shows a job's progress on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._last_line = ""

    def _make_bar(self) -> tuple[Progress, TaskID]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            # A worker's words, not ours: rich must not read markup in them.
            TextColumn("{task.fields[doing]}", markup=False),
            console=console(stderr=True),
        )
        return progress, progress.add_task("", total=None, doing="")

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


def _doing_text(job: JobReport, state: ModelState | None) -> str:
    parts: list[str] = [job.status]
    if job.failed:
        parts.append(f"{job.failed} failed")
    if not job.ended and state is not None and state.state != "loaded":
        parts.append(f"model {state_text(state)}")
    if speed := speed_text(job):
        parts.append(speed)
    # A worker's words go into it, and the bar writes them as they are.
    return printable(", ".join(parts))
