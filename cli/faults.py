"""A fault that `doctor` tells of and `repair` mends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One broken thing.

    Attributes:
        kind: For programs, such as "orphaned_lease".
        subject: What is broken.
        found: What is wrong with it.
        mend: What repairing it does.
        repair: Does it, after another look; False when nothing was left to do.
    """

    kind: str
    subject: str
    found: str
    mend: str
    repair: Callable[[], bool]
