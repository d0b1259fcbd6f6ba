"""LLM.int8() with its operands the other way round is bitsandbytes', to the bit."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.int8 import product as int8_product
from engine.int8.product import float_product, has_fast_integers, integer_product, llm_int8
from engine.quiet import quiet_libraries

THRESHOLD = 6.0


def by_bitsandbytes(
    x: torch.Tensor, weight: torch.Tensor, scb: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    with quiet_libraries():
        import bitsandbytes
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB, state.threshold = weight, scb, THRESHOLD
    state.has_fp16_weights = state.is_training = False
    with quiet_libraries():
        product: torch.Tensor = bitsandbytes.matmul(x, weight, bias=bias, state=state)
    return product


def random_weights(generator: torch.Generator, out: int, inner: int) -> torch.Tensor:
    return torch.randint(-127, 128, (out, inner), dtype=torch.int8, generator=generator)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 130),
    inner=st.integers(2, 96),  # of 1, torch 2.13's own integer product is wrong
    out=st.integers(1, 96),
    outliers=st.integers(0, 3),
    largest=st.sampled_from([20.0, 1e6]),
    piece_bytes=st.sampled_from([1, 2**12, 2**20]),
    with_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_the_product_is_that_of_bitsandbytes(
    seed: int,
    rows: int,
    inner: int,
    out: int,
    outliers: int,
    largest: float,
    piece_bytes: int,
    with_bias: bool,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=generator).clamp(-5, 5)
    for _ in range(outliers):
        row = int(torch.randint(rows, (1,), generator=generator))
        column = int(torch.randint(inner, (1,), generator=generator))
        # Beyond float16, in which bitsandbytes looks, but only where x itself is a number.
        x[row, column] = 20.0 if dtype == torch.float16 else largest
    weight = random_weights(generator, out, inner)
    scb = torch.rand(out, generator=generator) + 0.1
    bias = torch.randn(out, generator=generator).to(dtype) if with_bias else None

    with patch.object(int8_product, "_PIECE_BYTES", piece_bytes):
        ours = llm_int8(x.to(dtype), weight, scb, bias, threshold=THRESHOLD)

    assert ours.dtype == dtype
    theirs = by_bitsandbytes(x.to(dtype), weight, scb, bias)
    if has_fast_integers():
        assert torch.equal(ours, theirs)
    else:
        torch.testing.assert_close(ours, theirs)


def test_a_batch_of_sequences_keeps_its_shape() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 16, generator=generator)
    weight, scb = random_weights(generator, 8, 16), torch.ones(8)

    product = llm_int8(x, weight, scb, None, threshold=THRESHOLD)

    assert product.shape == (3, 5, 8)
    torch.testing.assert_close(product, by_bitsandbytes(x, weight, scb, None))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 33, 64, 65, 200])
def test_integers_are_exact_for_every_number_of_rows(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randint(-127, 128, (count, 40), dtype=torch.int8, generator=generator)
    weight = random_weights(generator, 24, 40)

    product = integer_product(rows, weight)

    assert product.dtype == torch.int32
    assert product.is_contiguous()
    assert torch.equal(product.long(), rows.long() @ weight.long().t())


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 130),
    inner=st.integers(2, 96),
    out=st.integers(1, 96),
    largest=st.sampled_from([0.0, 1e-20, 1.0, 60.0, 1e20]),
)
def test_digits_lose_no_more_than_float32_does(
    seed: int, rows: int, inner: int, out: int, largest: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inner, generator=generator) * largest
    weight = random_weights(generator, out, inner)
    scb = torch.rand(out, generator=generator) + 0.1

    product = float_product(x, weight, scb)

    exact = x.double() @ (weight.double() * scb.double()[:, None] / 127).t()
    # In every column of a row, twice what three digits and a last rounding leave out.
    most = 2 * 2**-24 * inner * x.abs().amax(dim=1, keepdim=True).double() * scb.double()
    assert ((product.double() - exact).abs() <= most + exact.abs() * 2**-22).all()


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_what_is_no_number_does_not_become_one(broken: float) -> None:
    x = torch.ones(2, 8)
    x[1, 3] = broken
    weight = random_weights(torch.Generator().manual_seed(1), 4, 8)

    product = float_product(x, weight, torch.ones(4))

    assert product[0].isfinite().all()
    assert not product[1].isfinite().any()


def test_a_row_has_the_same_product_whatever_its_company() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(150, 40, generator=generator)
    weight, scb = random_weights(generator, 24, 40), torch.rand(24, generator=generator)

    together = float_product(x, weight, scb)

    alone = [float_product(x[number : number + 1], weight, scb) for number in range(len(x))]
    assert torch.equal(together, torch.cat(alone))


def test_without_fast_integers_the_sums_are_as_close_as_floats_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int8_product, "has_fast_integers", lambda: False)
    monkeypatch.setattr(int8_product, "CPU_SCRATCH_BYTES", 1000)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(-127, 128, (3, 40), dtype=torch.int8, generator=generator)
    weight = random_weights(generator, 24, 40)

    product = integer_product(rows, weight)

    assert product.dtype == torch.int32
    assert torch.equal(product.long(), rows.long() @ weight.long().t())
