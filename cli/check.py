"""What `doctor` looked at, and what it found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at; mend is empty where nothing is to be done."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    mend: str = ""
