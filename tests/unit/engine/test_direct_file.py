"""Reads around the page cache give what the file holds, as far as they go."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from engine.weights.direct_file import ALIGNMENT_BYTES, DirectFile, open_direct

CONTENTS = bytes(range(251)) * 200  # 50 200 bytes: no whole number of pages


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(CONTENTS)
    return path


@pytest.fixture
def file(path: Path) -> DirectFile:
    opened = open_direct(path)
    if opened is None:
        pytest.skip("the file system of the scratch folder knows no reads around its cache")
    return opened


def page_buffer(size: int) -> torch.Tensor:
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def drop_from_page_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def test_all_but_the_odd_end_is_read(file: DirectFile, path: Path) -> None:
    drop_from_page_cache(path)
    target = page_buffer(len(CONTENTS))
    count = file.read(0, target)
    assert count == len(CONTENTS) - len(CONTENTS) % ALIGNMENT_BYTES
    assert bytes(target[:count].numpy()) == CONTENTS[:count]


def test_reading_leaves_nothing_in_the_page_cache(file: DirectFile, path: Path) -> None:
    drop_from_page_cache(path)
    target = page_buffer(4 * ALIGNMENT_BYTES)
    assert file.read(0, target) == len(target)
    # still not there, so that the next read goes to the disk as well
    assert file.read(0, target) == len(target)


def test_what_the_page_cache_has_is_left_to_it(file: DirectFile, path: Path) -> None:
    assert path.read_bytes() == CONTENTS
    assert file.read(0, page_buffer(4 * ALIGNMENT_BYTES)) == 0


@pytest.mark.parametrize(("position", "skipped"), [(8, 0), (0, 8)])
def test_what_is_not_aligned_is_left_alone(
    file: DirectFile, path: Path, position: int, skipped: int
) -> None:
    drop_from_page_cache(path)
    assert file.read(position, page_buffer(4 * ALIGNMENT_BYTES)[skipped:]) == 0


def test_a_file_that_became_shorter_is_read_to_its_end(file: DirectFile, path: Path) -> None:
    os.truncate(path, ALIGNMENT_BYTES)
    drop_from_page_cache(path)
    assert file.read(0, page_buffer(4 * ALIGNMENT_BYTES)) == ALIGNMENT_BYTES


def test_a_file_that_is_not_there_or_empty_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert open_direct(tmp_path / "missing") is None
    assert open_direct(tmp_path / "empty") is None
