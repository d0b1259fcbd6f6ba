"""A checksum that is cheap enough to take of every block each time it is read.

The sum of the data's little-endian 64-bit words, modulo 2**64: it finds any one
damaged sector, and pieces can be summed apart and in any order. SHA-256, which
`prepare --verify` compares, is stronger and ten times as slow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def sha256_of(path: Path, *, on_bytes: Callable[[int], None]) -> str:
    """The SHA-256 of a file, read in pieces.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            on_bytes(len(piece))
    return digest.hexdigest()


WORD_BYTES = 8


_MODULUS = 2**64


def word_sum(data: Any, position: int = 0) -> int:
    """Sum a piece of data.

    Args:
        data: The piece's bytes, as any buffer.
        position: Position of its first byte in the whole.

    Returns:
        What it adds to the sum of the whole, to be taken modulo 2**64.
    """
    values = np.frombuffer(data, dtype=np.uint8)
    phase = position % WORD_BYTES
    head = min(-phase % WORD_BYTES, len(values))
    body = (len(values) - head) // WORD_BYTES * WORD_BYTES
    total = int.from_bytes(values[:head].tobytes(), "little") << (8 * phase)
    words = values[head : head + body].view(np.dtype("<u8"))
    total += int(np.add.reduce(words, dtype=np.uint64))
    return total + int.from_bytes(values[head + body :].tobytes(), "little")


def total_of(sums: list[int]) -> int:
    """The sum of the whole, of its pieces'."""
    return sum(sums) % _MODULUS
