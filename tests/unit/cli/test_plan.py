"""`tgp-jobs plan` needs no weights, no GPU and no hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Tgp

T4_WITH_LITTLE_RAM = ("--gpu-memory", "14.5GiB", "--cpu-memory", "10GiB", "--disk", "100GiB")
BIG_MODELS = ("bloom-7b1", "gpt-neox-20b", "flan-ul2", "cerebras-gpt-13b")


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def planned(tgp: Tgp, *arguments: str | Path) -> dict[str, Any]:
    result = tgp("plan", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.parametrize("alias", BIG_MODELS)
def test_a_big_model_is_planned_without_its_weights(alias: str, tgp: Tgp) -> None:
    document = planned(tgp, alias, *T4_WITH_LITTLE_RAM)
    assert document["prediction"]["tokens_per_second"] > 1
    assert document["memory"]["device_bytes"] <= 14.5 * 2**30
    assert document["memory"]["ram_tier_bytes"] <= 10 * 2**30


def test_the_json_places_every_block(tgp: Tgp) -> None:
    document = planned(tgp, "gpt-neox-20b", *T4_WITH_LITTLE_RAM)
    names = [block["name"] for block in document["blocks"]]
    assert len(names) == len(set(names)) == 44 + 3
    assert {block["tier"] for block in document["blocks"]} <= {"resident", "ram", "disk"}


def test_the_table_says_what_goes_where_and_how_fast(tgp: Tgp) -> None:
    shown = tgp("plan", "gpt-neox-20b", *T4_WITH_LITTLE_RAM).stdout
    assert re.search(r"resident on the GPU +[\d.]+ GiB +decoder x \d+", shown)
    assert re.search(r"streamed from RAM +[\d.]+ GiB +decoder x \d+", shown)
    assert re.search(r"speed +[\d.]+ tokens/s", shown)
    assert "bounded by host-to-GPU link" in shown


def test_a_plan_is_said_to_be_a_prediction(tgp: Tgp) -> None:
    shown = tgp("plan", "gpt-neox-20b", *T4_WITH_LITTLE_RAM).stdout
    assert "These are predictions from the model's shape, not measurements." in shown


def test_a_folder_with_a_configuration_is_planned_for_this_machine(
    tgp: Tgp, tmp_path: Path
) -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    document = planned(tgp, tmp_path, "--device", "cpu")
    assert document["budgets"]["gpu_bytes"] is None
    assert len(document["blocks"]) == 3 + 2


def test_the_smallest_budget_of_a_refusal_may_be_typed_as_it_is_shown(tgp: Tgp) -> None:
    tight = ("--gpu-memory", "1GiB", "--cpu-memory", "100MiB", "--disk", "3GiB")
    refused = tgp("plan", "gpt-neox-20b", *tight)
    assert refused.exit_code == 1
    sizes = re.findall(r"([\d.]+) GiB of (GPU memory|CPU memory|disk space)", refused.stderr)
    option = {"GPU memory": "--gpu-memory", "CPU memory": "--cpu-memory", "disk space": "--disk"}
    enough = [word for size, name in sizes for word in (option[name], f"{size}GiB")]
    assert planned(tgp, "gpt-neox-20b", *enough)["micro_batch_rows"] == 1


def test_a_size_without_a_unit_is_a_usage_error(tgp: Tgp) -> None:
    result = tgp("plan", "bloom-7b1", "--gpu-memory", "14")
    assert result.exit_code == 2
    assert "'14' is not usable; expected a number with a unit" in result.stderr


def test_a_model_whose_shape_is_nowhere_is_refused_with_what_to_do(
    tgp: Tgp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    catalogue = tmp_path / "more.toml"
    catalogue.write_text('[models.mine]\nhub_id = "me/never-downloaded"\n')
    result = tgp("plan", "mine", "--catalogue", catalogue)
    assert result.exit_code == 2
    assert "the shape of mine is not known here: download me/never-downloaded's" in result.stderr


def test_a_configuration_that_cannot_be_used_is_refused(tgp: Tgp, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    result = tgp("plan", tmp_path)
    assert result.exit_code == 2
    assert "cannot be used" in result.stderr


def test_the_null_engine_has_nothing_to_plan(tgp: Tgp, tmp_path: Path) -> None:
    catalogue = tmp_path / "more.toml"
    catalogue.write_text('[models.empty]\nengine = "null"\n')
    result = tgp("plan", "empty", "--catalogue", catalogue)
    assert (result.exit_code, "nothing to plan" in result.stderr) == (2, True)


def test_without_torch_it_says_what_to_install(tgp: Tgp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.worker_extra.is_installed", lambda _: False)
    result = tgp("plan", "bloom-7b1")
    assert result.exit_code == 1
    assert "torch is not installed" in result.stderr


def test_asking_for_a_gpu_that_is_not_there_says_what_to_do(
    tgp: Tgp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.plan.machine.has_gpu", lambda: False)
    result = tgp("plan", "bloom-7b1", "--device", "cuda")
    assert result.exit_code == 2
    assert "--gpu-memory" in result.stderr
