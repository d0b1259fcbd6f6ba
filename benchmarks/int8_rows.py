"""Making activations int8 on a CPU: ours beside bitsandbytes', in turn.

    python -m benchmarks.int8_rows

Prints the least milliseconds of so many calls each, for a decode step's rows and
a prompt's, without outliers and with one column in 512 of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from bitsandbytes.functional import int8_vectorwise_quant

from engine.int8.linear import OUTLIER_THRESHOLD
from engine.int8.product import int8_rows_of

CALLS = 50
SHAPES = ((8, 2048), (256, 2048), (256, 8192))
COLUMNS_PER_OUTLIER = 512


def main() -> None:
    for rows, width in SHAPES:
        for has_outliers in (False, True):
            x = torch.randn(rows, width).clamp(-5.0, 5.0)
            if has_outliers:
                x[:, ::COLUMNS_PER_OUTLIER] = 2 * OUTLIER_THRESHOLD

            def theirs(x: torch.Tensor = x) -> object:
                return int8_vectorwise_quant(x.half(), threshold=OUTLIER_THRESHOLD)

            def ours(x: torch.Tensor = x) -> object:
                return int8_rows_of(x, OUTLIER_THRESHOLD)

            stock, own = least_milliseconds(theirs, ours)
            print(
                f"{rows:4} x {width}, {'with' if has_outliers else 'no':4} outliers: "
                f"bitsandbytes {stock:6.2f} ms, ours {own:5.2f} ms ({stock / own:.1f} x)"
            )


def least_milliseconds(*calls: Callable[[], object]) -> list[float]:
    """The least time of each, one after the other in every round."""
    least = [float("inf")] * len(calls)
    for _ in range(CALLS):
        for place, call in enumerate(calls):
            began = time.perf_counter()
            call()
            least[place] = min(least[place], 1000 * (time.perf_counter() - began))
    return least


if __name__ == "__main__":
    main()
