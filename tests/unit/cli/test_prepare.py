from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from engine.interface import LoadProgress, ModelLoadError
from tests.unit.cli.conftest import Tgp
from worker.models.prepare_model import PreparedModel


@dataclass
class Preparation:
    """Stands in for the real one, which needs torch."""

    was_there: bool = False
    damaged: tuple[str, ...] = ()
    refusal: str | None = None
    interrupted: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __call__(
        self, settings: Any, model: Any, *, verify: bool, on_progress: Any
    ) -> PreparedModel:
        self.asked.append({"settings": settings, "model": model.alias, "verify": verify})
        on_progress(LoadProgress(stage="prepare", done=0, total=3 * 2**30, unit="bytes"))
        if self.interrupted:
            raise KeyboardInterrupt
        if self.refusal is not None:
            raise ModelLoadError(self.refusal)
        return PreparedModel(
            folder=settings.stores_path / "tiny-bloom-0123456789",
            bytes=3 * 2**30,
            was_there=self.was_there,
            damaged=self.damaged if verify else None,
        )


@pytest.fixture
def preparation(monkeypatch: pytest.MonkeyPatch) -> Preparation:
    stand_in = Preparation()
    module = ModuleType("worker.models.prepare_model")
    module.prepare_model = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in


def test_it_prints_the_folder_and_tells_the_rest_on_stderr(
    tgp: Tgp, preparation: Preparation, home: Path
) -> None:
    result = tgp("prepare", "tiny-bloom")

    assert result.exit_code == 0
    assert result.stdout == f"{home}/stores/tiny-bloom-0123456789\n"
    assert result.stderr == (
        "making the int8 copy: 0 B of 3.0 GiB\nthe int8 copy of tiny-bloom is ready: 3.0 GiB\n"
    )


def test_json_has_everything(tgp: Tgp, preparation: Preparation, home: Path) -> None:
    preparation.was_there = True

    result = tgp("prepare", "tiny-bloom", "--verify", "--json")

    assert json.loads(result.stdout) == {
        "model": "tiny-bloom",
        "folder": f"{home}/stores/tiny-bloom-0123456789",
        "bytes": 3 * 2**30,
        "was_there": True,
        "verified": True,
    }


def test_stores_may_be_elsewhere(tgp: Tgp, preparation: Preparation, tmp_path: Path) -> None:
    result = tgp("prepare", "tiny-bloom", "--stores", tmp_path / "big")

    assert result.stdout.startswith(str(tmp_path / "big"))


def test_damaged_files_are_named(tgp: Tgp, preparation: Preparation) -> None:
    preparation.damaged = ("decoder-003.safetensors",)

    result = tgp("prepare", "tiny-bloom", "--verify")

    assert result.exit_code == 1
    assert "are damaged: decoder-003.safetensors; delete that folder" in result.stderr


def test_a_refusal_is_an_error_with_its_reason(tgp: Tgp, preparation: Preparation) -> None:
    preparation.refusal = "the disk has no room"

    result = tgp("prepare", "tiny-bloom", "--json")

    assert result.exit_code == 1
    error = json.loads(result.stderr.splitlines()[-1])["error"]
    assert error == {"code": "model_not_prepared", "message": "the disk has no room"}


def test_after_an_interrupt_it_says_how_to_go_on(tgp: Tgp, preparation: Preparation) -> None:
    preparation.interrupted = True

    result = tgp("prepare", "tiny-bloom")

    assert result.exit_code == 130
    assert "go on with: tgp-jobs prepare tiny-bloom" in result.stderr


def test_an_unknown_model_is_refused(tgp: Tgp, preparation: Preparation) -> None:
    result = tgp("prepare", "tiny-blom")

    assert result.exit_code == 2
    assert "did you mean 'tiny-bloom'?" in result.stderr
    assert preparation.asked == []


def test_the_null_engine_has_nothing_to_prepare(
    tgp: Tgp, preparation: Preparation, home: Path
) -> None:
    home.mkdir(exist_ok=True)
    (home / "catalogue.toml").write_text('[models.nothing]\nengine = "null"\n')

    result = tgp("prepare", "nothing")

    assert result.exit_code == 2
    assert "nothing to prepare" in result.stderr
