"""The same boxes and command lines as the other tests have."""

from __future__ import annotations

from tests.acceptance.conftest import box, postgres_box, short_folder
from tests.unit.cli.conftest import tgp

__all__ = ["box", "postgres_box", "short_folder", "tgp"]
