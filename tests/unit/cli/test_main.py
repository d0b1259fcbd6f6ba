from __future__ import annotations

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from cli.main import COMMANDS, cli
from jobs.database import Database
from jobs.settings import Settings
from tests.fresh_process import run_in_fresh_process
from tests.unit.cli.conftest import Tgp
from tests.unit.cli.working import completed, work_off


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with the words that call it."""
    yield "tgp-jobs", cli
    for name, lazy in COMMANDS.items():
        command = lazy.load()
        yield f"tgp-jobs {name}", command
        if isinstance(command, click.Group):
            for inner, nested in command.commands.items():
                yield f"tgp-jobs {name} {inner}", nested


ALL = dict(commands())


def example_lines(command: click.Command) -> list[str]:
    _, _, shown = (command.help or "").partition("Example:\n")
    return [line.strip() for line in shown.splitlines() if line.strip()]


def parsed_by(command: click.Command, words: list[str]) -> click.Context:
    """The context in which the words parse, of the command that they call in the end."""
    context = command.make_context(words[0], words[1:])
    if isinstance(command, click.Group):
        name, inner, _ = command.resolve_command(context, words[1:])
        assert inner is not None
        return parsed_by(inner, [str(name), *words[2:]])
    return context


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says_of_itself(name: str) -> None:
    first_paragraph = (COMMANDS[name].load().help or "").split("\n\n")[0]
    assert first_paragraph == COMMANDS[name].short_help


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_an_example_in_its_help(name: str, tgp: Tgp) -> None:
    shown = tgp(*name.split()[1:], "--help").stdout
    assert f"\n  Example:\n    {name}" in shown


@pytest.mark.parametrize(
    "line", sorted({line for command in ALL.values() for line in example_lines(command)})
)
def test_every_example_parses(line: str) -> None:
    assert parsed_by(cli, shlex.split(line)).params is not None


def test_every_setting_is_a_flag_of_some_command() -> None:
    flags = {option for command in ALL.values() for each in command.params for option in each.opts}
    wanted = {"--" + each.name.replace("_", "-") for each in fields(Settings)}
    assert wanted - flags == set()


@pytest.mark.parametrize("name", [name for name in ALL if not isinstance(ALL[name], click.Group)])
def test_every_command_prints_json_and_takes_the_places_of_things(name: str) -> None:
    flags = {option for each in ALL[name].params for option in each.opts}
    assert {"--json", "--home", "--database-url", "--redis-url", "--catalogue"} <= flags


def test_a_command_that_does_not_exist_is_a_usage_error(tgp: Tgp) -> None:
    result = tgp("sumbit")
    assert result.exit_code == 2
    assert "No such command 'sumbit'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("status", "zzzz", "--json"), "unknown_job"),
        (("list", "--json", "--limit", "0"), "usage"),
        (("list", "--json", "--home", ""), "bad_setting"),
    ],
)
def test_with_json_an_error_is_json_too(tgp: Tgp, arguments: tuple[str, ...], code: str) -> None:
    result = tgp(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error["code"] == code
    assert error["message"]


@pytest.mark.parametrize(
    "arguments", [("--shard-size", "0"), ("--shard-size", "many"), ("--redis-url", "http://x")]
)
def test_a_setting_that_cannot_be_used_is_refused(
    tgp: Tgp, prompt_file: Path, arguments: tuple[str, str]
) -> None:
    result = tgp("submit", prompt_file, "--model", "tiny-bloom", *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {arguments[0]}: {arguments[1]!r} is not usable")


def test_a_password_in_a_refused_url_is_not_shown(tgp: Tgp) -> None:
    result = tgp("list", "--redis-url", "http://user:secret@example/0")
    assert result.exit_code == 2
    assert "secret" not in result.output


def test_a_state_directory_that_cannot_be_made_is_an_error_and_no_traceback(
    tgp: Tgp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/var/state")

    monkeypatch.setattr(Path, "mkdir", refuse)
    result = tgp("list")
    assert (result.exit_code, result.stderr) == (1, "Error: /var/state: Permission denied\n")


def test_an_interrupt_ends_a_command_quietly(
    tgp: Tgp, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.store.reading.find_job", interrupt)
    result = tgp("status", job_id)
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize("arguments", [("list", "--json"), ("results",), ("doctor", "--help")])
def test_a_reader_that_leaves_early_causes_no_traceback(
    home: Path, job_id: str, sqlite_database: Database, arguments: tuple[str, ...]
) -> None:
    work_off(sqlite_database, job_id, [completed(index) for index in range(3)])
    if arguments == ("results",):
        arguments = ("results", job_id)
    command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    with subprocess.Popen(
        command,
        env={**os.environ, "TGP_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "command",
    ["list", "list --json", "status {id}", "models", "results {id}", "run {file} {model}"],
)
def test_a_closed_standard_stream_is_no_failure(
    home: Path, job_id: str, sqlite_database: Database, command: str, closed: str
) -> None:
    # given a job that has ended, and a model that needs no weights
    work_off(sqlite_database, job_id, [completed(index) for index in range(3)])
    (home / "catalogue.toml").write_text('[models.nothing]\nengine = "null"\n')
    (home / "one.txt").write_text("one\n")
    words = command.format(id=job_id, file=home / "one.txt", model="--model nothing")
    # when a command is started without its standard output or error
    done = subprocess.run(
        f"exec {sys.executable} -c 'from cli.main import main; main()' {words} {closed}",
        shell=True,
        env={**os.environ, "TGP_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    # then it does its work, and says where what it would have shown can be had
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    loses_results = closed == ">&-" and command.startswith(("results", "run"))
    assert ("standard output is closed" in done.stderr) == loses_results


def test_help_imports_nothing_that_it_does_not_need(home: Path) -> None:
    shown, modules = run_in_fresh_process(home, "--help")
    assert "submit" in shown
    assert modules & {"sqlalchemy", "celery", "kombu", "rich", "torch", "transformers"} == set()


def test_submit_stays_within_its_import_budget(home: Path, prompt_file: Path, tgp: Tgp) -> None:
    # Given a database that is current already.
    tgp("list")
    shown, modules = run_in_fresh_process(home, "submit", str(prompt_file), "--model", "tiny-bloom")
    assert re.fullmatch(r"[0-9a-z]{8}\n", shown)
    spared = {"torch", "transformers", "bitsandbytes", "alembic", "rich", "celery", "kombu"}
    spared |= {"sqlalchemy.orm", "sqlalchemy.dialects.postgresql"}
    assert modules & spared == set()


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_status_imports_no_more_than_it_needs(
    home: Path, job_id: str, flags: tuple[str, ...]
) -> None:
    shown, modules = run_in_fresh_process(home, "status", job_id, *flags)
    assert job_id in shown
    spared = {"sqlalchemy.orm", "sqlalchemy.dialects.postgresql", "psycopg", "alembic", "celery"}
    spared |= {"jobs.store.records", "tomllib", "rich", "torch"}
    assert modules & spared == set()


def test_the_version_is_that_of_the_package(tgp: Tgp) -> None:
    assert re.fullmatch(r"tgp-jobs \d+\.\d+\.\d+\n", tgp("--version").stdout)
