"""The rules of the house that import-linter cannot say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("engine", "worker", "jobs", "cli")
MOST_LINES = 400
# Imported anywhere, these cost seconds and gigabytes; a client box has none of them.
TENSOR_LIBRARIES = {"torch", "transformers", "bitsandbytes", "accelerate"}
# Files, or folders with a slash at the end.
ENGINE = {"engine/"}
QUEUE = {"worker/queue/", "jobs/dispatch.py"}
LEDGER = {"jobs/models.py", "jobs/database.py", "jobs/store/", "alembic/"}
# Where each library may be imported, for type checkers too.
TIERS = {
    "torch": ENGINE,
    "transformers": ENGINE,
    "bitsandbytes": ENGINE,
    "accelerate": ENGINE,
    "celery": QUEUE,
    "kombu": QUEUE,
    "sqlalchemy": LEDGER,
    "psycopg": LEDGER,
}
# A module of one of these names hides a library, or is nobody's room.
FORBIDDEN_NAMES = {"celery.py", "utils.py", "common.py", "helpers.py", "worker.py"}


def source_files(*folders: str) -> list[Path]:
    """Every Python file under the folders, relative to the project."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT) for path in found)


@cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    """Every absolute module a file imports, at any depth, by statement or by name."""
    for node in ast.walk(tree):
        yield from modules_imported_by(node)


def modules_imported_by(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=aliases):
            yield from (alias.name for alias in aliases)
        case ast.ImportFrom(module=str(module), level=0):
            yield module
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(module)), *_],
        ):
            yield module


def called_names(tree: ast.Module) -> set[str]:
    return {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def is_at_home(path: Path, tiers: set[str]) -> bool:
    name = path.as_posix()
    return any(name.startswith(home) if home.endswith("/") else name == home for home in tiers)


def loaded_after(statements: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the statements."""
    program = f"{statements}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "statement",
    [
        "import torch.nn",
        "from torch import nn",
        "def f():\n    import torch",
        "if TYPE_CHECKING:\n    from torch import Tensor",
        "importlib.import_module('torch')",
        "__import__('torch')",
    ],
)
def test_the_scan_sees_an_import_however_it_is_written(statement: str) -> None:
    assert {name.partition(".")[0] for name in imported_modules(ast.parse(statement))} == {"torch"}


@pytest.mark.parametrize("library", TIERS)
def test_a_library_is_imported_only_where_it_lives(library: str) -> None:
    strangers = [
        f"{path} imports {module}"
        for path in source_files(*PACKAGES, "alembic")
        for module in imported_modules(syntax_tree(path))
        if module.partition(".")[0] == library and not is_at_home(path, TIERS[library])
    ]
    assert strangers == []


def test_the_command_line_starts_without_tensor_libraries_and_without_celery() -> None:
    assert loaded_after("import cli.main") & (TENSOR_LIBRARIES | {"celery", "kombu"}) == set()


def test_the_whole_domain_imports_without_tensor_libraries() -> None:
    modules = [
        ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        for path in source_files("jobs")
    ]
    imports = "\n".join(f"import {module}" for module in modules)
    assert loaded_after(imports) & TENSOR_LIBRARIES == set()


def test_the_engines_interface_imports_without_tensor_libraries() -> None:
    assert loaded_after("import engine.interface") & TENSOR_LIBRARIES == set()


def test_no_file_has_a_name_that_hides_a_library_or_says_nothing() -> None:
    everywhere = [*source_files(*PACKAGES), *(path.relative_to(ROOT) for path in ROOT.glob("*.py"))]
    assert [str(path) for path in everywhere if path.name in FORBIDDEN_NAMES] == []


def test_the_migrations_folder_is_no_package_that_would_hide_alembic() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()


def test_every_file_is_short_enough_to_read_in_one_sitting() -> None:
    lengths = {
        str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines())
        for path in source_files(*PACKAGES)
    }
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_checkpoint_may_bring_code_of_its_own() -> None:
    trusting = [
        f"{path}:{node.value.lineno}"
        for path in source_files(*PACKAGES)
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert trusting == []


def test_nothing_is_unpickled() -> None:
    pickling = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
    # A refusal of torch's weights-only reader has to be caught by its name.
    allowed = "from pickle import UnpicklingError"
    assert [
        f"{path}: {ast.unparse(node)}"
        for path in source_files(*PACKAGES)
        for node in ast.walk(syntax_tree(path))
        if {module.partition(".")[0] for module in modules_imported_by(node)} & pickling
        and ast.unparse(node) != allowed
    ] == []


def test_torch_files_are_read_as_weights_only() -> None:
    loads = [
        (path, node)
        for path in source_files("engine")
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [
        f"{path}:{node.lineno}"
        for path, node in loads
        if "weights_only=True" not in {ast.unparse(each) for each in node.keywords}
    ] == []


def test_no_text_is_run_as_code() -> None:
    assert [
        str(path)
        for path in source_files(*PACKAGES)
        if called_names(syntax_tree(path)) & {"eval", "exec"}
    ] == []
