"""The documentation says what the program does, and its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from docs.reference.commands import commands
from jobs.settings import ENVIRONMENT_PREFIX, Settings

MOST_LINES_OF_README = 200
# A path that begins so is that of a library's own file.
LIBRARIES = {"celery"}
ROOT = Path(__file__).resolve().parents[1]
FENCED_BLOCK = re.compile(r"^(```+|~~~+)[^\n]*\n(?P<body>.*?)^\1\s*$", re.DOTALL | re.MULTILINE)
# [text](target) and ![text](target "title")
INLINE_LINK = re.compile(r"\[[^\]]*\]\(\s*<?(?P<target>[^)\s>]+)>?[^)]*\)")
# [label]: target
REFERENCE_LINK = re.compile(r"^\[[^\]]+\]:\s+<?(?P<target>[^\s>]+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(?P<title>.+?)\s*#*$", re.MULTILINE)
# The roots are spelt in halves so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w./~}-])/(?:" + "wo" + "rk|" + "ro" + r"ot|home/[a-z_][\w-]*)/")


def project_files() -> list[Path]:
    """What git tracks, and what it would take in with the next `git add`."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    paths = (Path(name) for name in listing.split("\0") if name)
    return sorted(path for path in paths if (ROOT / path).is_file())


def documentation() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".md"]


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def read_text_or_none(path: Path) -> str | None:
    try:
        return read(path)
    except UnicodeDecodeError:
        return None


def fenced_lines(text: str) -> list[str]:
    bodies = (match["body"] for match in FENCED_BLOCK.finditer(text))
    return [line.strip() for body in bodies for line in body.splitlines()]


def links_in(text: str) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "", FENCED_BLOCK.sub("", text))
    return [
        match["target"]
        for pattern in (INLINE_LINK, REFERENCE_LINK)
        for match in pattern.finditer(prose)
    ]


def anchors_in(text: str) -> set[str]:
    """The fragments that headings get where Markdown is rendered."""
    titles = (match["title"] for match in HEADING.finditer(FENCED_BLOCK.sub("", text)))
    bare = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in bare}


def version() -> str:
    found: str = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    return found


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_shows_the_command_to_type(command: str) -> None:
    typed = [line.removeprefix("$ ") for line in fenced_lines(read("README.md"))]
    assert [line for line in typed if line == command or line.startswith(f"{command} ")]


def test_the_readme_has_at_most_two_hundred_lines() -> None:
    assert len(read("README.md").splitlines()) <= MOST_LINES_OF_README


def commands_typed_in(text: str) -> set[str]:
    """The command lines of ours in fenced blocks and in code between backticks."""
    inline = re.findall(r"`([^`\n]+)`", FENCED_BLOCK.sub("", text))
    lines = (line.lstrip("!$ ") for line in [*fenced_lines(text), *inline])
    return {line for line in lines if re.match(r"tgp-jobs [a-z]", line)}


def unknown_words(line: str) -> set[str]:
    """The command or the flags of a command line that do not exist."""
    words = re.split(r"[#|\\]", line)[0].split()[1:]
    known = {path: command for path, command in commands().items() if path.split()[0] == words[0]}
    options = {flag for each in known.values() for option in each.params for flag in option.opts}
    flags = {word for word in words[1:] if re.fullmatch(r"-[a-z]|--[a-z-]+", word)}
    return (flags - options - {"--help"}) if known else {words[0]}


@pytest.mark.parametrize("page", documentation(), ids=str)
def test_every_command_and_flag_that_the_documentation_types_exists(page: Path) -> None:
    lines = commands_typed_in(read(page))
    assert {line: unknown for line in lines if (unknown := unknown_words(line))} == {}


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("tgp-jobs submit - --model x", set()),
        ("tgp-jobs db upgrade  # --once", set()),
        ("tgp-jobs submits x", {"submits"}),
        ("tgp-jobs status 7kq2 --wach", {"--wach"}),
    ],
)
def test_a_command_line_that_does_not_exist_is_noticed(line: str, unknown: set[str]) -> None:
    assert unknown_words(line) == unknown


@pytest.mark.parametrize(
    "variable",
    [*(ENVIRONMENT_PREFIX + each.name.upper() for each in fields(Settings)), "TGP_CONFIG"],
)
def test_every_setting_is_documented(variable: str) -> None:
    guides = [path for path in documentation() if path.parts[0] in {"README.md", "docs"}]
    assert [path for path in guides if re.search(rf"\b{variable}\b", read(path))]


def test_the_documentation_names_no_setting_that_does_not_exist() -> None:
    known = {ENVIRONMENT_PREFIX + each.name.upper() for each in fields(Settings)} | {"TGP_CONFIG"}
    named = {
        (str(path), variable)
        for path in documentation()
        for variable in re.findall(r"\bTGP_[A-Z][A-Z_]*[A-Z]\b", read(path))
    }
    assert {each for each in named if each[1] not in known} == set()


def leads_somewhere(page: Path, target: str) -> bool:
    """Whether a link on a page is external, or its file and heading exist."""
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return True
    name, _, fragment = target.partition("#")
    aim = (ROOT / page.parent / name).resolve() if name else ROOT / page
    if not aim.exists():
        return False
    return not fragment or aim.suffix != ".md" or fragment in anchors_in(read(aim))


def test_every_relative_link_leads_to_a_file_and_a_heading() -> None:
    assert [
        f"{page}: {target}"
        for page in documentation()
        for target in links_in(read(page))
        if not leads_somewhere(page, target)
    ] == []


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ('[a](b.md) ![c](d.png "title")', ["b.md", "d.png"]),
        ("[a]: docs/b.md", ["docs/b.md"]),
        ("`[a](b.md)`", []),
        ("```\n[a](b.md)\n```\n", []),
    ],
)
def test_links_are_read_from_prose_and_not_from_code(text: str, targets: list[str]) -> None:
    assert links_in(text) == targets


@pytest.mark.parametrize("target", ["missing.md", "#no-such-heading", "docs/missing.md#x"])
def test_a_link_that_leads_nowhere_is_noticed(target: str) -> None:
    assert not leads_somewhere(Path("README.md"), target)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /" + "root/x", True),
        ("(/" + "home/ann/x)", True),
        ("a/" + "root/x", False),
        ("$HOME/x", False),
    ],
)
def test_the_search_for_machine_paths_finds_them_and_nothing_else(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is found


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    texts = {path: read_text_or_none(path) for path in project_files()}
    assert [str(path) for path, text in texts.items() if text and MACHINE_PATH.search(text)] == []


def test_the_changelog_has_an_entry_for_the_version() -> None:
    headings = re.findall(r"^## +\[?([^\s\]]+)", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert version() in headings


def top_level_folders() -> set[str]:
    return {path.parts[0] for path in project_files() if len(path.parts) > 1}


def test_the_file_tree_names_every_top_level_folder() -> None:
    shown = {
        match["name"]
        for line in fenced_lines(read("docs/structures.md"))
        if (match := re.match(r"[\s|├└─`+-]*(?P<name>[\w.-]+)/(?:\s|$)", line))
    }
    assert {each for each in top_level_folders() if not each.startswith(".")} - shown == set()


def paths_named_in(text: str) -> set[str]:
    """Paths of Python files, and of folders and files below our own folders, given as code."""
    named = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)(?:::[^`]*)?`", FENCED_BLOCK.sub("", text))
    return {
        path
        for path in named
        if path.split("/")[0] not in LIBRARIES
        and (path.endswith(".py") or ("/" in path and path.split("/")[0] in top_level_folders()))
    }


@pytest.mark.parametrize(
    "page", [each for each in documentation() if each != Path("CHANGELOG.md")], ids=str
)
def test_every_file_that_the_documentation_names_is_there(page: Path) -> None:
    assert {each for each in paths_named_in(read(page)) if not (ROOT / each).exists()} == set()


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("`jobs/store` and `jobs/new_job.py`", {"jobs/store", "jobs/new_job.py"}),
        ("`tests/test_docs.py::test_links`", {"tests/test_docs.py"}),
        ("`block_file.py`", {"block_file.py"}),
        ("`state/stores` and jobs/store", set()),
        ("`celery/worker/worker.py`", set()),
        ("```\n`jobs/store`\n```\n", set()),
    ],
)
def test_paths_are_read_from_code_in_prose(text: str, paths: set[str]) -> None:
    assert paths_named_in(text) == paths


def test_every_room_of_the_engine_is_among_the_structures() -> None:
    files = (path for path in project_files() if path.parts[0] == "engine" and path.suffix == ".py")
    rooms = {"/".join(path.parts[:2]) for path in files} - {"engine/__init__.py"}
    assert rooms - paths_named_in(read("docs/structures.md")) == set()


PROMISED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`")


def promised_tests(page: str = "promises") -> list[tuple[str, str]]:
    return PROMISED_TEST.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))


def test_every_promise_names_a_test() -> None:
    rows = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines()
    promises = [row for row in rows if row.startswith("| ") and not row.startswith("| promise")]
    assert len(promises) == len(promised_tests()) > 0


@pytest.mark.parametrize(("file", "name"), [*promised_tests(), *promised_tests("security")])
def test_a_promise_s_test_exists(file: str, name: str) -> None:
    assert re.search(rf"^ *def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
