"""The fuzz targets under hypothesis: faultless input, damaged input, and what was found once.

Without coverage to guide it this is a quick look; `make fuzz` is the long one.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS, WORDS, store_file
from tests.fuzz.targets import TARGETS


def header(**entry: object) -> bytes:
    """A block's header with one tensor of 29 bytes, but for what is said."""
    tensor = {"dtype": "I8", "shape": [29], "data_offsets": [0, 29]}
    return json.dumps({"w": tensor | entry}).encode()


def manifest(**changes: object) -> bytes:
    document = json.loads(SEEDS["store_manifest"][0])
    return json.dumps(document | changes).encode()


NESTED = b'{"a":' * 100_000
# Each raised something else than a refusal, or was taken, before it was mended.
FOUND = [
    ("settings_environment", b"TGP_STORES=~nobody-of-that-name"),
    ("settings_environment", b"TGP_REDIS_URL=redis://:p@h\xe4:/0"),
    ("settings_environment", b"TGP_REDIS_URL=redis://h/0?virtual_host=1"),
    ("settings_environment", b"TGP_DATABASE_URL=sqlite://h/x.db"),
    ("settings_file", b'database_url = "sqlite:///x.db?timeout=abc"'),
    ("settings_file", b'stores = "~nobody-of-that-name"'),
    ("catalogue", b'[models.a]\nfolder = "~nobody-of-that-name"'),
    ("message", b"[[1333333333333333333333333333], {}]"),
    ("message", b"[[2147483648], {}]"),
    ("store_header", NESTED),
    ("store_header", header(shape=[-1, -29])),
    ("store_header", header(shape=[29.0])),
    ("store_header", header(shape=[1] * 9 + [2**70, 0], data_offsets=[29, 29])),
    ("store_manifest", NESTED),
    ("store_manifest", manifest(files={"../d-0.safetensors": {"bytes": 0, "sha256": ""}})),
    ("store_manifest", manifest(total_bytes=float("inf"))),
]


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """A seed with a few cuts, copies, bytes and words in the wrong place."""
    content = draw(st.sampled_from(SEEDS[name]))
    places = st.floats(0, 1, exclude_max=True)
    pieces = st.sampled_from(WORDS) | st.binary(max_size=4)
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(int(draw(places) * (len(content) + 1)) for _ in range(2))
        kind = draw(st.sampled_from(["cut", "copy", "put", "replace", "end"]))
        if kind == "cut":
            content = content[:start] + content[end:]
        elif kind == "copy":
            content = content[:end] + content[start:]
        elif kind == "put":
            content = content[:start] + draw(pieces) + content[start:]
        elif kind == "replace":
            content = content[:start] + draw(pieces) + content[min(start + 3, end) :]
        else:
            content = content[:end]
    return content


@pytest.mark.parametrize(
    ("name", "seed"), [(name, seed) for name, seeds in SEEDS.items() for seed in seeds]
)
def test_faultless_input_is_taken(name: str, seed: bytes) -> None:
    TARGETS[name](seed)


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_what_was_found_once_is_refused(name: str, content: bytes) -> None:
    TARGETS[name](content)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_input_is_read_or_refused(name: str, data: st.DataObject) -> None:
    TARGETS[name](data.draw(damaged(name)))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(name: str, content: bytes) -> None:
    TARGETS[name](content)


def test_tensors_that_share_bytes_are_refused() -> None:
    from contextlib import ExitStack

    from engine.interface import ModelLoadError
    from engine.store.manifest import WrittenFile
    from engine.store.read import open_block
    from tests.fuzz.stores import manifest_of
    from tests.fuzz.targets import scratch

    first = {"dtype": "I8", "shape": [29], "data_offsets": [0, 29]}
    text = json.dumps({"a": first, "b": first}).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(29)
    (scratch() / "d-0.safetensors").write_bytes(data)
    listed = manifest_of({"d-0.safetensors": WrittenFile(bytes=len(data), sha256="")})
    with ExitStack() as files, pytest.raises(ModelLoadError, match="do not belong together"):
        open_block(scratch(), "d-0", listed, files)


def test_the_seed_of_a_store_is_read_whole() -> None:
    # So that a target which refuses everything would be noticed.
    from contextlib import ExitStack

    from engine.store.manifest import WrittenFile
    from engine.store.read import open_block
    from tests.fuzz.stores import manifest_of
    from tests.fuzz.targets import scratch

    (scratch() / "d-1.safetensors").write_bytes(store_file())
    listed = manifest_of({"d-1.safetensors": WrittenFile(bytes=len(store_file()), sha256="")})
    with ExitStack() as files:
        assert open_block(scratch(), "d-1", listed, files).bytes == 29
