"""Host memory is what the tightest of machine and control groups has left."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.plan.machine import available_bytes, free_memory_bytes, machine_budgets

GIB = 2**30
MEMINFO = "MemTotal:       16384000 kB\nMemFree:  1000 kB\nMemAvailable:   12582912 kB\n"
AVAILABLE = 12 * GIB


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """A made-up /proc and /sys/fs/cgroup."""
    texts = {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup}
    texts |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_is_available_is_read_in_bytes() -> None:
    assert available_bytes(MEMINFO) == AVAILABLE


def test_a_kernel_without_the_figure_is_refused() -> None:
    with pytest.raises(ValueError, match="MemAvailable"):
        available_bytes("MemTotal: 1 kB\n")


def test_without_control_groups_the_machine_decides(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    assert free_memory_bytes(tmp_path) == AVAILABLE


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        pytest.param(
            "0::/\n",
            {"memory.max": f"{4 * GIB}\n", "memory.current": f"{GIB}\n"},
            3 * GIB,
            id="version 2, in a container",
        ),
        pytest.param("0::/\n", {"memory.max": "max\n"}, AVAILABLE, id="version 2, no limit"),
        pytest.param(
            "0::/a.slice/b.scope\n",
            {
                "a.slice/memory.max": f"{2 * GIB}\n",
                "a.slice/memory.current": "0\n",
                "a.slice/b.scope/memory.max": f"{5 * GIB}\n",
                "a.slice/b.scope/memory.current": "0\n",
            },
            2 * GIB,
            id="version 2, a group above is tighter",
        ),
        pytest.param(
            "0::/\n",
            {
                "memory.max": f"{4 * GIB}\n",
                "memory.current": f"{3 * GIB}\n",
                "memory.stat": f"anon 5\ninactive_file {GIB}\nactive_file {GIB}\n",
            },
            3 * GIB,
            id="version 2, the page cache is given back",
        ),
        pytest.param(
            "11:cpu,cpuacct:/x\n4:memory:/docker/1\n",
            {
                "memory/docker/1/memory.limit_in_bytes": f"{6 * GIB}\n",
                "memory/docker/1/memory.usage_in_bytes": f"{2 * GIB}\n",
                "memory/docker/1/memory.stat": f"total_inactive_file {GIB}\n",
            },
            5 * GIB,
            id="version 1",
        ),
        pytest.param(
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712\n"},
            AVAILABLE,
            id="version 1, no limit",
        ),
        pytest.param(
            "0::/\n",
            {"memory.max": f"{GIB}\n", "memory.current": f"{2 * GIB}\n"},
            0,
            id="over its limit",
        ),
    ],
)
def test_a_control_group_is_believed_before_the_machine(
    tmp_path: Path, cgroup: str, files: dict[str, str], left: int
) -> None:
    assert free_memory_bytes(machine(tmp_path, cgroup, files)) == left


def test_a_store_folder_that_does_not_exist_yet_has_its_disks_room(tmp_path: Path) -> None:
    budgets = machine_budgets(tmp_path / "home" / "stores", on_gpu=False)
    assert budgets.disk_bytes > 0
    assert budgets.gpu_bytes is None
