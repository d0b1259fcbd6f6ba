"""Multiplying by int8 weights on a CPU, with the processor's own integer products.

LLM.int8() is bitsandbytes' sums, with the weights as the left operand. It
multiplies ``activations @ weights^T``, and for a few rows that is the wrong way
round for oneDNN, which then brings the weights into its own order in every
call; with ``weights @ activations^T`` it is the activations. The products are
integers, so they are the same ones. Two cores with AVX-512 VNNI, 8 rows: 2.8 x
as fast for 2048 x 8192, 1.4 x for 8192 x 2048, 2.3 x for 16384 x 4096. That
holds for powers of two only, so rows are filled up to one.

Where activations are to stay float, they are written with three int8 digits:
the products of those are exact, so a row's sums depend on nothing but the row.
"""

from __future__ import annotations

import torch

# Of a matrix, what is float at one time. It is what stays in the cache: at 2048
# columns, 8 rows of activations took 7.7 ms in pieces of this size, 11.9 in a
# quarter of it and 45 for the matrix as a whole.
CPU_SCRATCH_BYTES = 2**23


# From 128 rows on neither way is always the faster one.
_MOST_ROWS = 64


# A digit leaves out half a unit at most, which is 127 units of the next one.
_BASE = 254.0


# A row of zeros must not be divided by; what is smaller than this has no digits.
_LEAST_TOP = 1e-30


# Rows whose digits are multiplied at once: it bounds the memory of a prompt's pass.
_DIGIT_ROWS = 64


# Of float32 activations, what is worked on at one time between products: it stays in the cache.
_PIECE_BYTES = 2**20


# 1 / 127^2, as bitsandbytes writes it: int8_mm_dequant in backends/default/ops.py.
_UNIT = 6.200124e-05


def llm_int8(
    x: torch.Tensor,
    weight: torch.Tensor,
    scb: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    threshold: float,
) -> torch.Tensor:
    """Multiply as bitsandbytes.matmul does, to the bit.

    The formula is that of its MatMul8bitLt: activations are made int8 row by
    row, but for the columns in which any row is beyond the threshold; those are
    multiplied as floats and added (Dettmers et al., 2022, LLM.int8()).

    Args:
        x: Activations, float [..., in].
        weight: int8 [out, in].
        scb: float32 [out], each row's largest absolute value.
        bias: [out] or None.
        threshold: Smallest absolute value of an activation that is an outlier.

    Returns:
        [..., out] of x's dtype.
    """
    from bitsandbytes.functional import int8_vectorwise_dequant

    rows = x.reshape(-1, x.shape[-1])
    int8_rows, tops, outliers = int8_rows_of(rows, threshold)
    sums = _scaled(integer_product(int8_rows, weight), tops, scb)
    if bias is not None:
        sums += bias
    out = sums.to(x.dtype)
    if outliers.numel():
        columns = int8_vectorwise_dequant(weight[:, outliers].contiguous(), scb).to(x.dtype)
        out.addmm_(rows[:, outliers].contiguous(), columns.t())
    return out.view(*x.shape[:-1], len(weight))


def int8_rows_of(
    rows: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations made int8 row by row, as bitsandbytes' int8_vectorwise_quant does.

    To the bit, where they are numbers, but a few rows at a time, which stay in
    the processor's cache: that is 1.6 to 6.9 times as fast (benchmarks.int8_rows).

    Args:
        rows: float [B, in].
        threshold: Smallest absolute value of an activation that is an outlier.

    Returns:
        int8 [B, in], with zeros in the columns of outliers; float32 [B], the
        largest absolute value of each row's others; int64, those columns.
    """
    count, width = rows.shape
    int8_rows = torch.empty(count, width, dtype=torch.int8)
    tops = torch.empty(count)
    has_outlier = torch.zeros(width, dtype=torch.bool)
    some = max(1, _PIECE_BYTES // (width * tops.element_size()))
    for start in range(0, count, some):
        # As bitsandbytes: outliers are looked for in float16.
        piece = rows[start : start + some].half().float()
        sizes = piece.abs()
        top = sizes.amax(dim=1)
        if not bool((top < threshold).all()):
            columns = (sizes.amax(dim=0) >= threshold).nonzero().view(-1)
            is_outlier = sizes[:, columns] >= threshold
            for tensor in (piece, sizes):
                tensor[:, columns] = tensor[:, columns].masked_fill_(is_outlier, 0.0)
            top = sizes.amax(dim=1)
            has_outlier[columns] = True
        tops[start : start + some] = top
        int8_rows[start : start + some] = piece.mul_((127.0 / top)[:, None]).round_()
    outliers = has_outlier.nonzero().view(-1)
    if count > 1 and outliers.numel():
        int8_rows[:, outliers] = 0
    return int8_rows, tops, outliers


def _scaled(products: torch.Tensor, tops: torch.Tensor, scb: torch.Tensor) -> torch.Tensor:
    """float32 [B, out] of the int32 ones, multiplied in bitsandbytes' order."""
    sums = torch.empty(products.shape)
    some = max(1, _PIECE_BYTES // (len(scb) * sums.element_size()))
    for start in range(0, len(products), some):
        piece = torch.outer(tops[start : start + some], scb, out=sums[start : start + some])
        piece.mul_(products[start : start + some]).mul_(_UNIT)
    return sums


def float_product(x: torch.Tensor, weight: torch.Tensor, scb: torch.Tensor) -> torch.Tensor:
    """``x @ (weight * scb / 127)^T``, as close as float32 comes.

    A row is ``top / 127 * (d0 + d1 / 254 + d2 / 254^2)`` with int8 digits and
    top its largest absolute value. What three digits leave out is below
    2^-24 of top.

    Args:
        x: Activations, float [..., in].
        weight: int8 [out, in].
        scb: float32 [out], each row's largest absolute value.

    Returns:
        [..., out] of x's dtype.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    out = rows.new_empty(len(rows), len(weight))
    for start in range(0, len(rows), _DIGIT_ROWS):
        some = rows[start : start + _DIGIT_ROWS]
        top = some.abs().amax(dim=1, keepdim=True).clamp_(min=_LEAST_TOP)
        sums = integer_product(_digits(some, top), weight).view(3, len(some), -1)
        target = out[start : start + _DIGIT_ROWS]
        torch.mul(sums[2], 1 / _BASE, out=target)
        target.add_(sums[1]).mul_(1 / _BASE).add_(sums[0]).mul_(top / 127.0)
    return out.mul_(scb / 127.0).to(x.dtype).view(*x.shape[:-1], len(weight))


def _digits(rows: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    """int8 [3 B, in] of float32 [B, in]: all first digits, all second ones, all third ones."""
    left = rows * (127.0 / top)
    digits = []
    for _ in range(3):
        digit = left.round()
        digits.append(digit.to(torch.int8))
        left = left.sub_(digit).mul_(_BASE)
    return torch.cat(digits)


def integer_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rows @ weight^T`` of int8 [B, in] and int8 [out, in], as int32 [B, out]."""
    if not has_fast_integers():
        return _float_product(rows, weight)
    count = len(rows)
    if not 2 <= count <= _MOST_ROWS:
        return torch._int_mm(rows, weight.t())
    power_of_two = 1 << (count - 1).bit_length()
    if count < power_of_two:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, power_of_two - count))
    return torch._int_mm(weight, rows.t())[:, :count].t().contiguous()


def has_fast_integers() -> bool:
    """Whether torch multiplies integers faster than floats; it does not without AVX-512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _float_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In float32, as bitsandbytes does there, but never with the whole matrix made float."""
    floats = rows.float()
    lines = max(1, CPU_SCRATCH_BYTES // (weight.shape[1] * floats.element_size()))
    out = torch.empty(len(rows), len(weight), dtype=torch.int32)
    for start in range(0, len(weight), lines):
        piece = weight[start : start + lines]
        out[:, start : start + lines] = floats @ piece.float().t()
    return out
