"""Rows are quantised a few at a time, with the numbers of the whole."""

from __future__ import annotations

import pytest
import torch

from engine.int8.quantise import CPU_CHUNK_ELEMENTS, cast_chunks, quantised_chunks
from engine.quiet import quiet_libraries

CPU = torch.device("cpu")


def random_weight(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, columns, generator=generator).to(dtype)


def by_bitsandbytes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with quiet_libraries():
        from bitsandbytes.functional import int8_vectorwise_quant

    int8, scales, _ = int8_vectorwise_quant(weight.contiguous().half())
    return int8, scales


def in_chunks(
    weight: torch.Tensor, load_dtype: torch.dtype, *, is_transposed: bool = False
) -> tuple[int, torch.Tensor, torch.Tensor]:
    chunks = list(
        quantised_chunks(weight, load_dtype=load_dtype, is_transposed=is_transposed, device=CPU)
    )
    rows, scales = zip(*chunks, strict=True)
    return len(chunks), torch.cat(rows), torch.cat(scales)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_chunks_hold_the_bytes_of_the_whole(dtype: torch.dtype) -> None:
    weight = random_weight(1030, 513, dtype)

    count, int8, scales = in_chunks(weight, dtype)

    expected_int8, expected_scales = by_bitsandbytes(weight)
    assert count > 1
    assert torch.equal(int8, expected_int8)
    assert torch.equal(scales, expected_scales)


def test_a_transposed_weight_is_quantised_by_its_outputs() -> None:
    weight = random_weight(513, 1030, torch.float16)

    _, int8, scales = in_chunks(weight, torch.float16, is_transposed=True)

    expected_int8, expected_scales = by_bitsandbytes(weight.T)
    assert torch.equal(int8, expected_int8)
    assert torch.equal(scales, expected_scales)


def test_a_weight_goes_through_the_dtype_that_the_model_is_loaded_in() -> None:
    weight = random_weight(8, 64, torch.float32)

    _, _, scales = in_chunks(weight, torch.bfloat16)

    assert torch.equal(scales, by_bitsandbytes(weight.bfloat16())[1])
    assert not torch.equal(scales, by_bitsandbytes(weight)[1])


def test_a_row_longer_than_a_chunk_is_a_chunk() -> None:
    weight = random_weight(2, CPU_CHUNK_ELEMENTS + 1, torch.float16)

    count, int8, _ = in_chunks(weight, torch.float16)

    assert count == 2
    assert torch.equal(int8, by_bitsandbytes(weight)[0])


@pytest.mark.parametrize("shape", [(), (7,), (3, CPU_CHUNK_ELEMENTS)])
def test_a_cast_tensor_comes_in_order(shape: tuple[int, ...]) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).remainder(1000).float().reshape(shape)

    chunks = list(cast_chunks(tensor, torch.float16))

    assert torch.equal(torch.cat(chunks), tensor.half().flatten())
