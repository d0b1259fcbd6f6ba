"""What was measured is kept, and nothing else is believed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from engine.plan.probe import disk_bytes_per_second, read_throughputs, write_throughputs
from engine.plan.rates import T4

MEASURED = replace(T4, name="measured: some card", link_bytes_per_second=1.5e10)


def test_what_was_measured_is_read_back(tmp_path: Path) -> None:
    cache = tmp_path / "home" / "throughputs.json"
    write_throughputs(cache, MEASURED)
    assert read_throughputs(cache) == MEASURED
    assert [path.name for path in cache.parent.iterdir()] == ["throughputs.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"name": "half of it"}',
        json.dumps(asdict(MEASURED) | {"link_bytes_per_second": 0}),
        json.dumps(asdict(MEASURED) | {"link_bytes_per_second": "fast"}),
        json.dumps(asdict(MEASURED) | {"of_another_version": 1}),
    ],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "throughputs.json"
    cache.write_text(text)
    assert read_throughputs(cache) is None


def test_the_disk_is_read_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.plan.probe.DISK_BYTES", 16 * 2**20)
    assert disk_bytes_per_second(tmp_path / "stores") > 1e6
    assert list((tmp_path / "stores").iterdir()) == []
