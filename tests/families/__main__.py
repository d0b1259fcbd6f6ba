"""Writes docs/models.md: `make models`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.families.checkpoints import FAMILIES
from tests.families.checks import report_of
from tests.families.page import PAGE, page_of


def main() -> None:
    """Look at every family, and write what holds."""
    reports = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            reports.append(report_of(family, Path(scratch)))
        sys.stdout.write(f"{reports[-1].line()}\n")
        sys.stdout.flush()
    PAGE.write_text(page_of(reports), encoding="utf-8")


if __name__ == "__main__":
    main()
