"""Buffers for weights: their size, and the pages they are on."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from engine.weights.buffers import host_buffer

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of_mapping(address: int) -> list[str]:
    """The kernel's flags of the mapping that an address is in, by proc_pid_smaps(5)."""
    is_it = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        start, _, rest = line.partition("-")
        end = rest.split(" ", 1)[0]
        try:
            is_it = int(start, 16) <= address < int(end, 16)
        except ValueError:
            if is_it and line.startswith("VmFlags:"):
                return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:#x}")


def test_a_buffer_has_exactly_the_bytes_asked_for() -> None:
    with ExitStack() as cleanup:
        buffer = host_buffer(3_000_001, is_pinned=False, cleanup=cleanup)

    assert buffer.shape == (3_000_001,)
    assert not buffer.any()


@pytest.mark.skipif(not HUGE_PAGES.exists(), reason="the kernel has no transparent huge pages")
def test_a_buffer_may_be_on_huge_pages() -> None:
    with ExitStack() as cleanup:
        buffer = host_buffer(2**23, is_pinned=False, cleanup=cleanup)

        assert "hg" in flags_of_mapping(buffer.data_ptr() + 2**22)
