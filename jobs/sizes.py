"""Sizes as people type them."""

from __future__ import annotations

import re
from decimal import Decimal

_UNITS = {
    "B": 1,
    **{f"{letter}iB": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 10 ** (3 * power) for power, letter in enumerate("KMGT", start=1)},
}
_BY_LOWER_CASE = {unit.lower(): size for unit, size in _UNITS.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([a-z]+)", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes, from a number with a unit: 14.5GiB, 10GB, 512MiB.

    Raises:
        ValueError: It is no such thing; the message shows how to write one.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _BY_LOWER_CASE.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(
            f"{text!r} is no size; write a number and a unit, such as 14.5GiB, 10GB or 512MiB"
        )
    return int(Decimal(match[1]) * unit)
