"""What a load opens and builds: each weight file once, and at most one skeleton."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors

from engine.checkpoint import tensors as checkpoint_tensors
from engine.layout import blocks
from engine.model import build, place
from engine.store import contents
from engine.store.header import SUFFIX
from tests.integration.engine_runs import load
from tests.stores import split_in_two
from tests.tiny_checkpoints import ALIASES, save_random_checkpoint


class Reads:
    """Counts the files that are opened for reading, by name.

    Attributes:
        counts: Opens by Python, by the name of the file.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] | None = None
        # It cannot be removed again, so it is told when to listen.
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: Any) -> None:
        if event == "open" and self.counts is not None:
            path, _, flags = arguments
            if isinstance(path, (str, Path)) and not flags & (os.O_WRONLY | os.O_RDWR):
                self.counts[Path(path).name] += 1


READS = Reads()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Opens of store files by Python and of checkpoint files by the safetensors library."""
    counts = READS.counts = Counter()
    safe_open = safetensors.safe_open

    def counted(path: str, **options: Any) -> Any:
        counts[Path(path).name] += 1
        return safe_open(path, **options)

    monkeypatch.setattr(checkpoint_tensors, "safe_open", counted)
    yield counts
    READS.counts = None


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Skeletons and empty models that were built."""
    counts: Counter[str] = Counter()

    def counting(what: str, build: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            counts[what] += 1
            return build(*arguments, **options)

        return counted

    for module in (contents, blocks):
        counted = counting("skeleton", module.int8_skeleton)
        monkeypatch.setattr(module, "int8_skeleton", counted)
    monkeypatch.setattr(place, "empty_model", counting("empty model", build.empty_model))
    return counts


def weights(reads: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in reads.items() if name.endswith(SUFFIX)}


@pytest.mark.parametrize("alias", ALIASES)
def test_a_first_load_opens_each_file_once_and_builds_one_skeleton(
    alias: str, tmp_path: Path, reads: Counter[str], built: Counter[str]
) -> None:
    folder = split_in_two(save_random_checkpoint(alias, tmp_path / "checkpoint"))
    reads.clear()

    load(folder, stores=tmp_path / "stores").close()

    (store,) = (path for path in (tmp_path / "stores").iterdir() if path.is_dir())
    names = {file.name for each in (folder, store) for file in each.glob(f"*{SUFFIX}")}
    for_transformers = {name for name in names if name.endswith(f".plain{SUFFIX}")}
    assert weights(reads) == dict.fromkeys(names - for_transformers, 1)
    assert built == {"skeleton": 1, "empty model": 1}


def test_a_later_load_builds_no_skeleton(
    tmp_path: Path, reads: Counter[str], built: Counter[str]
) -> None:
    folder = save_random_checkpoint("tiny-bloom", tmp_path / "checkpoint")
    load(folder, stores=tmp_path / "stores").close()
    reads.clear()
    built.clear()

    load(folder, stores=tmp_path / "stores").close()

    assert set(weights(reads).values()) == {1}
    assert built == {"empty model": 1}
