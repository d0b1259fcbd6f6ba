"""Whatever happens while a store is made, no later load trusts a half of it."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.interface import LoadInterruptedError, LoadProgress, ModelLoadError
from engine.store.lock import store_lock
from engine.store.manifest import MANIFEST, damaged_files
from engine.store.prepare import Int8Store
from tests.stores import ignore, never, prepare
from tests.tiny_checkpoints import save_random_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from tests.stores import prepare

store = prepare(
    Path(sys.argv[1]),
    Path(sys.argv[2]),
    on_progress=lambda progress: print(progress.stage, progress.done, flush=True),
)
print("made" if not store.was_there else "found", flush=True)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_checkpoint("tiny-flan", tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Int8Store:
    return prepare(checkpoint, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    return tmp_path / "stores"


def start(checkpoint: Path, stores: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, checkpoint, stores],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def complete_stores(stores: Path) -> list[Path]:
    """Folders that a load would look into."""
    return [path for path in stores.iterdir() if path.is_dir() and path.suffix != ".partial"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def nothing() -> None:
    return None


def stop_after(calls: int) -> Iterator[bool]:
    yield from (False for _ in range(calls))
    while True:
        yield True


def test_a_process_killed_anywhere_leaves_no_store_and_the_next_goes_on(
    checkpoint: Path, stores: Path, undisturbed: Int8Store
) -> None:
    chance = random.Random(4)  # no secret
    furthest = 0
    for _ in range(3):
        with start(checkpoint, stores) as process:
            assert process.stdout is not None
            begun = int(process.stdout.readline().split()[1])
            for _ in range(chance.randrange(1, 25)):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        # what was finished is not done again
        assert begun >= furthest
        furthest = begun
        assert complete_stores(stores) == []

    store = prepare(checkpoint, stores)

    assert contents(store.folder) == contents(undisturbed.folder)


@pytest.mark.parametrize("calls", [0, 1, 5, 20, 40, 60])
def test_a_stop_anywhere_leaves_no_store_and_the_next_goes_on(
    checkpoint: Path, stores: Path, undisturbed: Int8Store, calls: int
) -> None:
    stop = stop_after(calls)
    with pytest.raises(LoadInterruptedError):
        prepare(checkpoint, stores, should_stop=lambda: next(stop))
    left = complete_stores(stores)

    store = prepare(checkpoint, stores)

    assert left == []
    assert contents(store.folder) == contents(undisturbed.folder)


def test_finished_blocks_are_not_written_again(checkpoint: Path, stores: Path) -> None:
    stop = stop_after(60)
    with pytest.raises(LoadInterruptedError):
        prepare(checkpoint, stores, should_stop=lambda: next(stop))
    (partial,) = stores.glob("*.partial")
    listed = json.loads((partial / MANIFEST).read_text())["files"]
    before = {name: (partial / name).stat().st_mtime_ns for name in listed}

    store = prepare(checkpoint, stores)

    assert before
    assert before == {name: (store.folder / name).stat().st_mtime_ns for name in before}


def test_a_full_disk_says_so_and_the_next_goes_on(
    checkpoint: Path, stores: Path, undisturbed: Int8Store
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(progress: LoadProgress) -> None:
        if progress.done > progress.total / 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))

    # the kernel then refuses to let a file grow, as a full disk does
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(ModelLoadError) as caught:
            prepare(checkpoint, stores, on_progress=fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    left = complete_stores(stores)

    store = prepare(checkpoint, stores)

    assert "the disk is full" in str(caught.value)
    assert left == []
    assert contents(store.folder) == contents(undisturbed.folder)


def test_a_disk_without_room_is_refused_with_the_numbers_and_nothing_written(
    checkpoint: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.store.maker.free_disk_bytes", lambda _: 2**20)

    with pytest.raises(ModelLoadError, match=r"needs 0\.06 GiB .* 0\.00 GiB are free"):
        prepare(checkpoint, stores)

    assert [path.suffix for path in stores.iterdir()] == [".lock"]


def test_the_disk_it_takes_is_said_before_anything_is_written(
    checkpoint: Path, stores: Path
) -> None:
    said: list[tuple[LoadProgress, bool]] = []

    def on_progress(progress: LoadProgress) -> None:
        said.append((progress, any(stores.glob("*.partial"))))

    store = prepare(checkpoint, stores, on_progress=on_progress)

    first, was_begun = said[0]
    assert (first.stage, first.done, first.unit) == ("prepare", 0, "bytes")
    assert first.total == said[-1][0].done == store.manifest.total_bytes
    assert not was_begun


def test_a_store_that_is_there_is_not_made_again(checkpoint: Path, stores: Path) -> None:
    made = prepare(checkpoint, stores)

    found = prepare(checkpoint, stores, on_progress=lambda _: pytest.fail("it works"))

    assert (made.was_there, found.was_there) == (False, True)
    assert found.folder == made.folder


def faults_of(store: Int8Store) -> list[str]:
    return damaged_files(store.folder, store.manifest, on_progress=ignore, should_stop=never)


def test_an_intact_store_has_no_damaged_files(undisturbed: Int8Store) -> None:
    assert faults_of(undisturbed) == []


@pytest.mark.parametrize("name", ["decoder-001.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_is_found_and_its_file_named(
    checkpoint: Path, stores: Path, name: str
) -> None:
    store = prepare(checkpoint, stores)
    data = bytearray((store.folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store.folder / name).write_bytes(data)

    assert faults_of(store) == [name]


@pytest.mark.parametrize("fault", ["truncated", "missing"])
def test_a_store_that_is_not_whole_is_made_again(
    checkpoint: Path, stores: Path, undisturbed: Int8Store, fault: str
) -> None:
    block = prepare(checkpoint, stores).folder / "decoder-000.safetensors"
    if fault == "missing":
        block.unlink()
    else:
        os.truncate(block, block.stat().st_size - 1)

    store = prepare(checkpoint, stores)

    assert not store.was_there
    assert contents(store.folder) == contents(undisturbed.folder)


def test_a_store_of_a_checkpoint_that_changed_is_made_again(
    checkpoint: Path, stores: Path, tmp_path: Path
) -> None:
    changing = Path(shutil.copytree(checkpoint, tmp_path / "changing"))
    before = prepare(changing, stores)
    weights = changing / "model.safetensors"
    save_file({name: t * 2 for name, t in load_file(weights).items()}, weights, {"format": "pt"})

    after = prepare(changing, stores)

    assert not after.was_there
    assert after.folder == before.folder
    assert complete_stores(stores) == [after.folder]


def test_a_store_of_an_earlier_form_is_made_again_in_its_place(
    checkpoint: Path, stores: Path, undisturbed: Int8Store
) -> None:
    before = prepare(checkpoint, stores)
    document = json.loads((before.folder / MANIFEST).read_text())
    del document["layout"]
    document["origin"]["format_version"] = 2
    (before.folder / MANIFEST).write_text(json.dumps(document))

    after = prepare(checkpoint, stores)

    assert not after.was_there
    assert complete_stores(stores) == [before.folder]
    assert contents(after.folder) == contents(undisturbed.folder)


def test_an_interrupted_attempt_on_another_checkpoint_is_not_gone_on_with(
    checkpoint: Path, stores: Path, tmp_path: Path
) -> None:
    changing = Path(shutil.copytree(checkpoint, tmp_path / "changing"))
    stop = stop_after(60)
    with pytest.raises(LoadInterruptedError):
        prepare(changing, stores, should_stop=lambda: next(stop))
    weights = changing / "model.safetensors"
    save_file({name: t * 2 for name, t in load_file(weights).items()}, weights, {"format": "pt"})

    store = prepare(changing, stores)

    fresh = prepare(changing, tmp_path / "fresh")
    assert contents(store.folder) == contents(fresh.folder)


def test_stores_with_other_settings_stand_side_by_side(checkpoint: Path, stores: Path) -> None:
    one = prepare(checkpoint, stores)
    other = prepare(checkpoint, stores, dtype=torch.float16)

    assert one.folder != other.folder
    assert prepare(checkpoint, stores).was_there


def test_of_two_processes_one_makes_the_store_and_both_have_it(
    checkpoint: Path, stores: Path
) -> None:
    with start(checkpoint, stores) as one, start(checkpoint, stores) as other:
        said = [process.communicate()[0].splitlines()[-1] for process in (one, other)]

    assert sorted(said) == ["found", "made"]


def test_whoever_waits_for_another_process_says_so(checkpoint: Path, stores: Path) -> None:
    folder = prepare(checkpoint, stores).folder
    shutil.rmtree(folder)
    waiting = threading.Event()
    said: list[str] = []

    def on_progress(progress: LoadProgress) -> None:
        said.append(progress.stage)
        waiting.set()

    thread = threading.Thread(
        target=prepare, args=(checkpoint, stores), kwargs={"on_progress": on_progress}
    )
    with store_lock(folder, on_wait=nothing, should_stop=never):
        thread.start()
        assert waiting.wait(30)
    thread.join()

    assert said[0] == "waiting"
    assert said[-1] == "prepare"


def test_waiting_for_another_process_can_be_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    deadline = time.monotonic() + 30
    with (
        store_lock(folder, on_wait=nothing, should_stop=never),
        pytest.raises(LoadInterruptedError),
        store_lock(folder, on_wait=nothing, should_stop=lambda: True),
    ):
        pass
    assert time.monotonic() < deadline
