"""A store's files are safetensors files whose tensors are aligned."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from engine.layout.blocks import TensorLayout
from engine.store.checksum import sha256_of
from engine.store.contents import aligned
from engine.store.header import DATA_ALIGNMENT_BYTES, safetensors_header

DTYPES = (torch.int8, torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def layout(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> TensorLayout:
    return TensorLayout(
        name=name, model_name=name, dtype=dtype, shape=shape, role="plain", is_parameter=True
    )


layouts = st.lists(
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(1, 40), max_size=3).map(tuple)),
    min_size=1,
    max_size=12,
).map(lambda found: [layout(f"t{index}", *each) for index, each in enumerate(found)])


@given(layouts)
def test_every_tensor_starts_at_a_multiple_of_what_its_size_allows(
    tensors: list[TensorLayout],
) -> None:
    offset = 0
    for tensor in aligned(tensors):
        assert offset % (tensor.bytes & -tensor.bytes) == 0
        offset += tensor.bytes


def test_a_header_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = (layout("a", torch.float32, (2, 3)), layout("b", torch.float16, ()))
    file = tmp_path / "x.safetensors"

    file.write_bytes(safetensors_header(tensors) + bytes(24 + 2))

    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_tensor("a").shape == (2, 3)
        assert opened.get_tensor("b").dtype == torch.float16


def test_data_starts_on_a_page() -> None:
    header = safetensors_header((layout("a", torch.int8, (1,)),))

    assert len(header) % DATA_ALIGNMENT_BYTES == 0
    assert json.loads(header[8:])["a"]["data_offsets"] == [0, 1]


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    counted: list[int] = []

    # the example of FIPS 180-2
    assert sha256_of(file, on_bytes=counted.append) == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert counted == [3]
