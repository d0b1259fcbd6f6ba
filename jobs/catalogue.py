"""The models a worker may load, by alias: built in, and from a TOML file.

A client names a model; only the worker's catalogue says what that is, so a
message can never make a worker load something its owner did not list.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jobs.errors import CatalogueError, UnknownModelError
from jobs.packaged import PACKAGE, packaged_folder
from jobs.settings import Settings, expanded_path

# An alias is part of a queue's name and of file names.
ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TEXT_KEYS = ("hub_id", "folder", "packaged", "revision", "description", "engine", "crash_on")
LOCATIONS = ("hub_id", "folder", "packaged")
ENGINES = ("transformers", "null")
# What the null engine of benchmarks and fault tests may be told, in seconds.
NULL_ENGINE_KEYS = ("load_seconds", "micro_batch_seconds")


@dataclass(frozen=True, kw_only=True)
class CatalogueModel:
    """One model: exactly one of hub_id and folder says where it is.

    engine "null" generates nothing real and needs neither; it is for
    benchmarks of the queue and for trying out a set-up without a model.
    """

    alias: str
    hub_id: str | None = None
    folder: Path | None = None
    revision: str | None = None
    context_tokens: int | None = None
    description: str = ""
    engine: str = "transformers"
    load_seconds: float = 0.0
    micro_batch_seconds: float = 0.0
    crash_on: str | None = None  # a prompt that kills the null engine's process

    @property
    def location(self) -> str:
        return self.hub_id or (str(self.folder) if self.folder else f"{self.engine} engine")


Catalogue = Mapping[str, CatalogueModel]


def load_catalogue(settings: Settings) -> Catalogue:
    """The built-in models, with the file's added or put in their place.

    Raises:
        CatalogueError: The file cannot be read or an entry cannot be used.
    """
    models = _read(PACKAGE / "catalogue.toml")
    path = settings.catalogue_path
    if path.exists():
        models |= _read(path)
    elif settings.catalogue is not None:
        raise CatalogueError(f"catalogue: there is no file {path}")
    return models


def find_model(catalogue: Catalogue, alias: str, also: set[str] | None = None) -> str:
    """The alias, if the catalogue or a live worker knows it.

    Args:
        catalogue: This machine's.
        alias: What the user typed.
        also: Aliases that live workers serve.

    Raises:
        UnknownModelError: Nobody knows it; the message offers the nearest.
    """
    known = {*catalogue, *(also or ())}
    if alias in known:
        return alias
    by_hub_id = {model.hub_id: model.alias for model in catalogue.values() if model.hub_id}
    if alias in by_hub_id:
        return by_hub_id[alias]
    near = get_close_matches(alias, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownModelError(
        f"no model is called {alias!r}: {hint}known: {', '.join(sorted(known))}; "
        "add others to catalogue.toml on the worker's machine"
    )


def _read(path: Path) -> dict[str, CatalogueModel]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{path}: cannot be read: {error}") from None
    tables = document.pop("models", {})
    if document or not isinstance(tables, dict):
        raise CatalogueError(f"{path}: expected only tables called [models.ALIAS]")
    return {alias: _entry(path, alias, table) for alias, table in tables.items()}


def _entry(path: Path, alias: str, table: Any) -> CatalogueModel:
    where = f"{path}: models.{alias}"
    if not ALIAS.fullmatch(alias):
        raise CatalogueError(f"{where}: an alias has letters, digits, '.', '_' and '-', up to 100")
    if not isinstance(table, dict):
        raise CatalogueError(f"{where}: expected a table")
    values: dict[str, Any] = {}
    for key, value in table.items():
        values[key] = _value(where, key, value)
    folder = values.pop("folder", None)
    packaged = values.pop("packaged", None)
    engine = values.get("engine", "transformers")
    if engine not in ENGINES:
        raise CatalogueError(f"{where}: engine {engine!r} is not one of {', '.join(ENGINES)}")
    locations = sum(key in table for key in LOCATIONS)
    if locations != (0 if engine == "null" else 1):
        raise CatalogueError(f"{where}: expected exactly one of hub_id and folder")
    if folder is not None:
        # Relative to the file that names it, so a catalogue can travel with its models.
        try:
            values["folder"] = (path.parent / expanded_path(folder)).absolute()
        except ValueError as error:
            raise CatalogueError(f"{where}: folder: expected {error}") from None
    if packaged is not None:
        if not ALIAS.fullmatch(packaged):
            raise CatalogueError(f"{where}: packaged: {packaged!r} is no model of the program's")
        checkpoints = packaged_folder(in_wheel="checkpoints", in_checkout="examples/checkpoints")
        values["folder"] = checkpoints / packaged
    return CatalogueModel(alias=alias, **values)


def _value(where: str, key: str, value: Any) -> Any:
    if key in TEXT_KEYS:
        if not isinstance(value, str) or not value:
            raise CatalogueError(f"{where}: {key} must be a non-empty string")
    elif key == "context_tokens":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CatalogueError(f"{where}: context_tokens must be a whole number from 1")
    elif key in NULL_ENGINE_KEYS:
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise CatalogueError(f"{where}: {key} must be a number of seconds from 0")
    else:
        known = ", ".join((*TEXT_KEYS, "context_tokens", *NULL_ENGINE_KEYS))
        raise CatalogueError(f"{where}: unknown key {key!r}; known: {known}")
    return value
