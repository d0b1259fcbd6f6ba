"""The reference with its tables and samples made from the code.

What stands between ``<!-- made: NAME -->`` and ``<!-- end -->`` is made here;
the rest of the page is written by hand.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args

from docs.reference import meanings
from docs.reference.commands import command_sections, commands, commands_that_take
from docs.reference.samples import FAULTY_FILE, JOB, ROWS
from docs.reference.tables import code, listed, table
from jobs.catalogue import NULL_ENGINE_KEYS, TEXT_KEYS
from jobs.errors import PromptFileError, TgpError
from jobs.prompts.file import PromptFile
from jobs.prompts.parameter import Parameter
from jobs.prompts.parameters import PARAMETERS, ParameterError
from jobs.results.formats import CSV_COLUMNS, FORMATS, result_document
from jobs.settings import ENVIRONMENT_PREFIX, Settings
from jobs.store.reports import JobStatus

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference.md"
MADE_PART = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Where the codes of failed prompts and jobs are written as literals.
FAILURE_FOLDERS = ("engine", "worker/shards", "jobs/store")
FAILURE_CODE = re.compile(r'(?:RefusedPromptError\(\s*|\bcode=)"(\w+)"')
# What ends the meaning of a setting without a default value: "RAM (what is free)".
MEANING_AND_DEFAULT = re.compile(r"(?P<meaning>.+?)(?: \((?P<default>[^)]+)\))?")


def page(text: str) -> str:
    """The page with each of its made parts made anew.

    Raises:
        ValueError: The page lacks one of the parts, or names one that is not made.
    """
    named = [match[2] for match in MADE_PART.finditer(text)]
    if sorted(named) != sorted(PARTS):
        raise ValueError(f"the page has the parts {named}; expected each of {list(PARTS)} once")
    return MADE_PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]()}\n\n{match[3]}", text)


def faulty_file() -> str:
    """What `submit` says of a file with errors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        path.write_text(FAULTY_FILE, encoding="utf-8")
        try:
            with PromptFile(path) as file:
                file.validate()
        except PromptFileError as error:
            said = error.message.replace(f"{folder}/", "")
        else:
            raise ValueError("the faulty file has no errors")
    return f"{_fenced(FAULTY_FILE)}\n\n{_fenced('Error: ' + said)}"


def parameters() -> str:
    """The generation parameters."""
    return table(
        ["name", "flag", "value", "default", "meaning"],
        (
            [code(each.name), code(_flag(each.name)), each.expected, _default(each), each.help]
            for each in PARAMETERS.values()
        ),
    )


def _default(parameter: Parameter) -> str:
    if parameter.kind == "boolean":
        return str(parameter.default).lower()
    return "none" if parameter.default is None else f"{parameter.default:g}"


def samples() -> str:
    """One job's results in each format but the table, which depends on the terminal's width."""
    return "\n\n".join(
        f"**`{name}`**\n\n{_fenced(''.join(lines(JOB, ROWS)))}"
        for name, lines in FORMATS.items()
        if name != "table"
    )


def results() -> str:
    """The keys of a result as JSON, and its columns as CSV."""
    document = result_document(JOB, ROWS[-1])
    places: dict[str, str] = {}
    for key, value in document.items():
        if isinstance(value, dict) and key != "error":
            places |= {inner: f"{key}.{inner}" for inner in value}
        else:
            places[key] = key
    places |= {"error_code": "error.code", "error_message": "error.message"}
    return table(
        ["key in JSON", "column in CSV", "meaning"],
        (
            [code(places[name]), code(name) if name in CSV_COLUMNS else "", words]
            for name, words in _described(places, meanings.RESULT)
        ),
    )


def failures() -> str:
    """The codes of prompts and jobs that failed."""
    files = (path for folder in FAILURE_FOLDERS for path in (ROOT / folder).rglob("*.py"))
    found = {each for path in files for each in FAILURE_CODE.findall(path.read_text("utf-8"))}
    return _described_table("code", found | {ParameterError.code}, meanings.FAILURES)


def statuses() -> str:
    """The statuses of a job."""
    return _described_table("status", get_args(JobStatus), meanings.STATUSES)


def errors() -> str:
    """The codes of commands that failed, with what a command says where it has no more to say."""
    commands()  # imports every module that has an error of its own
    return table(
        ["code", "exit code", "meaning"],
        ([code(each.code), str(each.exit_code), _first_line(each)] for each in _errors(TgpError)),
    )


def _errors(kind: type[TgpError]) -> Iterator[type[TgpError]]:
    # Tests have errors of their own, and some errors go by the code of their class.
    if kind.__module__.startswith(("jobs.", "cli.")) and "code" in vars(kind):
        yield kind
    for below in sorted(kind.__subclasses__(), key=lambda each: each.code):
        yield from _errors(below)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def settings() -> str:
    """Every setting, with the commands that take it as a flag."""
    return table(
        ["TOML key", "variable", "flag of", "value", "default", "meaning"],
        map(_setting_row, fields(Settings)),
    )


def _setting_row(setting: Field[Any]) -> list[str]:
    words = MEANING_AND_DEFAULT.fullmatch(setting.metadata["meaning"])
    if words is None:
        raise ValueError(f"{setting.name} has no meaning")
    default = words["default"] if setting.default is None else code(_shown(setting.default))
    takers = commands_that_take(setting.name)
    return [
        "none" if setting.name == "home" else code(setting.name),
        code(ENVIRONMENT_PREFIX + setting.name.upper()),
        "every command" if takers == list(commands()) else listed(takers),
        _expected(setting.metadata["parse"]),
        default or "none",
        words["meaning"],
    ]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _expected(parse: Callable[[object], object]) -> str:
    """What a value must be, as the refusal of something else says it."""
    try:
        parse(object())
    except ValueError as refusal:
        return str(refusal)
    raise ValueError(f"{parse} takes anything")


def catalogue() -> str:
    """The keys of a model in the catalogue."""
    keys = {*TEXT_KEYS, "context_tokens", *NULL_ENGINE_KEYS}
    return _described_table("key", keys, meanings.CATALOGUE)


def _described_table(heading: str, names: Collection[str], words: Mapping[str, str]) -> str:
    return table(
        [heading, "meaning"], ([code(name), each] for name, each in _described(names, words))
    )


def _described(names: Collection[str], words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names with their words, in the order of the words.

    Raises:
        ValueError: A name has no words, or words have no name.
    """
    if odd := set(names) ^ set(words):
        raise ValueError(f"docs/reference/meanings.py and the code differ in {sorted(odd)}")
    return iter(words.items())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _fenced(text: str) -> str:
    return f"```\n{text.rstrip()}\n```"


PARTS: Mapping[str, Callable[[], str]] = {
    "faulty_file": faulty_file,
    "parameters": parameters,
    "samples": samples,
    "results": results,
    "failures": failures,
    "statuses": statuses,
    "commands": command_sections,
    "errors": errors,
    "settings": settings,
    "catalogue": catalogue,
}
