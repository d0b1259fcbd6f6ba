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

# From 128 rows on neither way is always the faster one.
_MOST_ROWS = 64


def multiplies_on(device: torch.device) -> bool:
    """Whether to multiply here: without AVX-512, torch has no fast integer product."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512"


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
    # Not through its functional module, which has no choice of dtype.
    out: torch.Tensor = torch.ops.bitsandbytes.int8_mm_dequant.default(
        integer_product(int8_rows, weight), row_stats, scb, dtype=x.dtype, bias=bias
    )
    if outliers is not None and outliers.numel():
        columns = int8_vectorwise_dequant(weight[:, outliers].contiguous(), scb).to(x.dtype)
        out = out.addmm(rows[:, outliers].contiguous(), columns.t())
    return out.view(*x.shape[:-1], len(weight))


def integer_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``rows @ weight^T`` of int8 [B, in] and int8 [out, in], as int32 [B, out]."""
    count = len(rows)
    if not 2 <= count <= _MOST_ROWS:
        return torch._int_mm(rows, weight.t())
    power_of_two = 1 << (count - 1).bit_length()
    if count < power_of_two:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, power_of_two - count))
    return torch._int_mm(weight, rows.t())[:, :count].t().contiguous()
