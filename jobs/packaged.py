"""Folders that travel inside the wheel but stand elsewhere in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def packaged_folder(*, in_wheel: str, in_checkout: str) -> Path:
    """The folder's place: under jobs/ when installed, under the root in a checkout."""
    installed = PACKAGE / in_wheel
    return installed if installed.is_dir() else PACKAGE.parent / in_checkout
