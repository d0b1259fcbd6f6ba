"""The catalogue: what is built in, what a file adds, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.catalogue import CatalogueModel, find_model, load_catalogue
from jobs.errors import CatalogueError, UnknownModelError
from jobs.settings import Settings

BUILT_IN = {
    "bloom-7b1": "bigscience/bloom-7b1",
    "gpt-neox-20b": "EleutherAI/gpt-neox-20b",
    "flan-ul2": "google/flan-ul2",
    "cerebras-gpt-13b": "cerebras/Cerebras-GPT-13B",
}
TINY = ["tiny-bloom", "tiny-gpt-neox", "tiny-cerebras", "tiny-flan"]


def write(settings: Settings, text: str) -> Path:
    settings.home.mkdir(parents=True, exist_ok=True)
    path = settings.home / "catalogue.toml"
    path.write_text(text)
    return path


def refusal(settings: Settings, text: str) -> str:
    path = write(settings, text)
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(settings)
    assert caught.value.message.startswith(f"{path}: ")
    return caught.value.message.removeprefix(f"{path}: ")


def test_the_large_models_are_there_by_alias(settings: Settings) -> None:
    catalogue = load_catalogue(settings)
    assert {alias: catalogue[alias].hub_id for alias in BUILT_IN} == BUILT_IN


def test_the_small_models_lie_in_one_folder(settings: Settings) -> None:
    catalogue = load_catalogue(settings)
    folders = [catalogue[alias].folder for alias in TINY]
    assert [folder.name for folder in folders if folder is not None] == TINY
    assert len({folder.parent for folder in folders if folder is not None}) == 1


def test_every_built_in_model_says_what_it_is(settings: Settings) -> None:
    catalogue = load_catalogue(settings)
    assert set(catalogue) == {*BUILT_IN, *TINY}
    assert all(model.description and model.alias == alias for alias, model in catalogue.items())


def test_a_file_adds_models(settings: Settings) -> None:
    write(
        settings,
        '[models.mine]\nhub_id = "me/mine"\nrevision = "abc"\ncontext_tokens = 512\n',
    )
    catalogue = load_catalogue(settings)
    assert catalogue["mine"] == CatalogueModel(
        alias="mine", hub_id="me/mine", revision="abc", context_tokens=512
    )
    assert set(BUILT_IN) <= set(catalogue)


def test_a_file_s_model_takes_the_place_of_a_built_in_one(settings: Settings) -> None:
    write(settings, '[models.bloom-7b1]\nfolder = "/models/bloom"\n')
    model = load_catalogue(settings)["bloom-7b1"]
    assert (model.hub_id, model.folder) == (None, Path("/models/bloom"))


def test_a_folder_is_meant_from_where_its_file_is(settings: Settings) -> None:
    write(settings, '[models.mine]\nfolder = "checkpoints/mine"\n')
    assert load_catalogue(settings)["mine"].folder == settings.home / "checkpoints" / "mine"


def test_a_tilde_in_a_folder_is_the_user_s_home(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/somewhere/me")
    write(settings, '[models.mine]\nfolder = "~/mine"\n')
    assert load_catalogue(settings)["mine"].folder == Path("/somewhere/me/mine")


def test_a_null_engine_needs_no_place(settings: Settings) -> None:
    write(settings, '[models.fake]\nengine = "null"\nload_seconds = 2\ncrash_on = "boom"\n')
    model = load_catalogue(settings)["fake"]
    assert (model.engine, model.load_seconds, model.crash_on) == ("null", 2, "boom")
    assert model.location == "null engine"


def test_a_catalogue_that_was_named_must_be_there(settings: Settings, tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(CatalogueError, match=f"^catalogue: there is no file {missing}$"):
        load_catalogue(replace(settings, catalogue=missing))


def test_the_catalogue_that_was_named_is_read_instead(settings: Settings, tmp_path: Path) -> None:
    write(settings, '[models.at-home]\nhub_id = "a/b"\n')
    other = tmp_path / "other.toml"
    other.write_text('[models.elsewhere]\nhub_id = "a/b"\n')
    catalogue = load_catalogue(replace(settings, catalogue=other))
    assert "elsewhere" in catalogue
    assert "at-home" not in catalogue


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[models.m]\nhub_id = \n", "cannot be read: "),
        ("[other]\nx = 1\n", "expected only tables called [models.ALIAS]"),
        ("models = 3\n", "expected only tables called [models.ALIAS]"),
        ("[models]\nm = 3\n", "models.m: expected a table"),
        ("[models.m]\n", "models.m: expected exactly one of hub_id and folder"),
        (
            '[models.m]\nhub_id = "a/b"\nfolder = "c"\n',
            "models.m: expected exactly one of hub_id and folder",
        ),
        ('[models.m]\nhub_id = ""\n', "models.m: hub_id must be a non-empty string"),
        ("[models.m]\nfolder = 3\n", "models.m: folder must be a non-empty string"),
        (
            '[models.m]\nhub_id = "a/b"\ncontext_tokens = 0\n',
            "models.m: context_tokens must be a whole number from 1",
        ),
        (
            '[models.m]\nhub_id = "a/b"\ncontext_tokens = true\n',
            "models.m: context_tokens must be a whole number from 1",
        ),
        (
            '[models.m]\nengine = "null"\nload_seconds = -1\n',
            "models.m: load_seconds must be a number of seconds from 0",
        ),
        (
            '[models.m]\nhub_id = "a/b"\nengine = "vllm"\n',
            "models.m: engine 'vllm' is not one of transformers, null",
        ),
        ('[models.m]\nhubid = "a/b"\n', "models.m: unknown key 'hubid'; known: hub_id, folder"),
        (
            '[models."a b"]\nhub_id = "a/b"\n',
            "models.a b: an alias has letters, digits, '.', '_' and '-', up to 100",
        ),
        (
            f'[models.{"x" * 101}]\nhub_id = "a/b"\n',
            f"models.{'x' * 101}: an alias has letters, digits, '.', '_' and '-', up to 100",
        ),
    ],
)
def test_a_bad_file_says_where_and_what_was_expected(
    settings: Settings, text: str, problem: str
) -> None:
    assert refusal(settings, text).startswith(problem)


def test_a_model_is_found_by_alias_and_by_hub_id(settings: Settings) -> None:
    catalogue = load_catalogue(settings)
    assert find_model(catalogue, "flan-ul2") == "flan-ul2"
    assert find_model(catalogue, "google/flan-ul2") == "flan-ul2"


def test_a_model_that_only_a_worker_serves_is_found(settings: Settings) -> None:
    assert find_model(load_catalogue(settings), "theirs", also={"theirs"}) == "theirs"


def test_an_unknown_model_is_refused_with_the_nearest_and_all(settings: Settings) -> None:
    with pytest.raises(UnknownModelError) as refused:
        find_model(load_catalogue(settings), "blom-7b1", also={"theirs"})
    message = refused.value.message
    assert message.startswith("no model is called 'blom-7b1': did you mean 'bloom-7b1'? known: ")
    assert all(alias in message for alias in [*BUILT_IN, *TINY, "theirs"])


def test_a_name_near_nothing_gets_no_hint(settings: Settings) -> None:
    with pytest.raises(UnknownModelError, match=r"^no model is called 'zzzz': known: "):
        find_model(load_catalogue(settings), "zzzz")
