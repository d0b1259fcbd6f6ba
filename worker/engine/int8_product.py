"""LLM.int8() on a CPU: bitsandbytes' sums, with the weights as the left operand.

bitsandbytes multiplies ``activations @ weights^T``. For a few rows that is the
wrong way round for oneDNN, which then brings the weights into its own order in
every call; with ``weights @ activations^T`` it is the activations. The
products are integers, so they are the same ones. Two cores with AVX-512 VNNI,
8 rows: 2.8 x as fast for 2048 x 8192, 1.4 x for 8192 x 2048, 2.3 x for
16384 x 4096. That holds for powers of two only, so rows are filled up to one.
"""

from __future__ import annotations

import torch

# Of a matrix, what is float at one time. It is what stays in the cache: at 2048
# columns, 8 rows of activations took 7.7 ms in pieces of this size, 11.9 in a
# quarter of it and 45 for the matrix as a whole.
CPU_SCRATCH_BYTES = 2**23
# From 128 rows on neither way is always the faster one.
_MOST_ROWS = 64
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
        threshold: From which absolute value on an activation is an outlier.

    Returns:
        [..., out] of x's dtype.
    """
    from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant

    rows = x.reshape(-1, x.shape[-1])
    # As bitsandbytes: outliers are looked for in float16.
    int8_rows, row_stats, outliers = int8_vectorwise_quant(
        rows.to(torch.float16), threshold=threshold
    )
    # Its order of multiplying, in place: its own takes four times the memory.
    sums = torch.outer(row_stats, scb).mul_(integer_product(int8_rows, weight))
    sums.mul_(_UNIT)
    if bias is not None:
        sums += bias
    out = sums.to(x.dtype)
    if outliers is not None and outliers.numel():
        columns = int8_vectorwise_dequant(weight[:, outliers].contiguous(), scb).to(x.dtype)
        out = out.addmm(rows[:, outliers].contiguous(), columns.t())
    return out.view(*x.shape[:-1], len(weight))


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
