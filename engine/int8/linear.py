"""A linear layer over int8 weights that live wherever a loader puts them."""

from __future__ import annotations

from typing import Any, Literal

import torch

from engine.int8.product import CPU_SCRATCH_BYTES, float_product, has_fast_integers, llm_int8

ComputeMode = Literal["llm_int8", "w8a16"]


# The value of the LLM.int8() paper: activation columns beyond it stay in half precision.
OUTLIER_THRESHOLD = 6.0
# Of a matrix, what is float at one time, on a GPU.
GPU_SCRATCH_BYTES = 2**26


class Int8Linear(torch.nn.Module):
    """``y = x W^T + b`` with ``W = weight * SCB / 127``, row by row.

    "llm_int8" is bitsandbytes' LLM.int8(): activations are made int8 as well,
    but for the columns beyond the threshold. "w8a16" keeps them float, so a
    row's output does not depend on its batch mates.

    Attributes:
        weight: int8 [out, in].
        SCB: float32 [out], each row's largest absolute value.
        bias: [out] or None.
    """

    weight: torch.nn.Parameter
    SCB: torch.Tensor
    bias: torch.nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, *, mode: ComputeMode) -> None:
        """An empty layer; the loader assigns its tensors."""
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.mode = mode
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)
        self.register_buffer("SCB", None)
        self._state: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply activations, [..., in], by the weights: [..., out]."""
        if self.mode == "w8a16":
            return _float_linear(x, self.weight, self.SCB, self.bias)
        if x.device.type == "cpu":
            return llm_int8(x, self.weight, self.SCB, self.bias, threshold=OUTLIER_THRESHOLD)
        if self._state is None:
            self._state = _matmul_state(self.weight, self.SCB)
        import bitsandbytes

        return bitsandbytes.matmul(x, self.weight, bias=self.bias, state=self._state)  # type: ignore[no-any-return]


class Float32Int8Linear(Int8Linear):
    """The same, multiplied in float32 whatever the model's dtype.

    For the linears that transformers keeps in float32 because their products
    overflow float16: T5's `wo`. The output is float32, as theirs is.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _float_linear(x.float(), self.weight, self.SCB, self.bias)


def _matmul_state(weight: torch.Tensor, scb: torch.Tensor) -> Any:
    """What bitsandbytes' own layer keeps after its first call."""
    from bitsandbytes import MatmulLtState

    state = MatmulLtState()
    state.CB, state.SCB = weight.data, scb
    state.threshold = OUTLIER_THRESHOLD
    state.has_fp16_weights = False
    state.is_training = False
    return state


def _float_linear(
    x: torch.Tensor, weight: torch.Tensor, scb: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    if x.device.type == "cpu" and has_fast_integers():
        out = float_product(x, weight, scb)
        return out if bias is None else out.add_(bias)
    out_features, in_features = weight.shape
    scales = scb / 127.0
    piece_bytes = CPU_SCRATCH_BYTES if x.device.type == "cpu" else GPU_SCRATCH_BYTES
    rows = max(1, min(out_features, piece_bytes // (in_features * x.element_size())))
    scratch = x.new_empty(rows, in_features)
    out = x.new_empty(*x.shape[:-1], out_features)
    for start in range(0, out_features, rows):
        piece = weight[start : start + rows]
        floats = scratch[: len(piece)]
        target = out[..., start : start + len(piece)]
        if x.dtype == torch.float32:
            # Copying alone is faster, and float32 has room for 127 times as much.
            floats.copy_(piece)
            torch.mul(
                torch.nn.functional.linear(x, floats),
                scales[start : start + len(piece)],
                out=target,
            )
        else:
            torch.mul(piece, scales[start : start + len(piece), None], out=floats)
            target.copy_(torch.nn.functional.linear(x, floats))
    return out if bias is None else out.add_(bias)
