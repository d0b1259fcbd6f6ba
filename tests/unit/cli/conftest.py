"""The command line in this process, on a state directory of its own."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import cli

Tgp = Callable[..., Result]


@pytest.fixture
def tgp(home: Path) -> Tgp:
    """Run `tgp-jobs` with these arguments; an unexpected exception fails the test."""

    def run(*arguments: str | Path, stdin: str | None = None) -> Result:
        return CliRunner().invoke(
            cli,
            [str(each) for each in arguments],
            input=stdin,
            env={"TGP_HOME": str(home)},
            catch_exceptions=False,
            prog_name="tgp-jobs",
        )

    return run


@pytest.fixture(autouse=True)
def _garbage_is_collected_afterwards() -> Iterator[None]:
    yield
    gc.enable()


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    """A text, a text with a name, and a chat."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "one"}\n'
        '{"prompt": "two", "custom_id": "second"}\n'
        '{"messages": [{"role": "user", "content": "three"}]}\n',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def job_id(tgp: Tgp, prompt_file: Path) -> str:
    """A stored job of three prompts in one shard, for tiny-bloom."""
    return tgp("submit", prompt_file, "--model", "tiny-bloom").stdout.strip()
