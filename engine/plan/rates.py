"""How fast a machine moves and multiplies, with constants where nothing was measured."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Throughputs:
    """The rates that predictions are made from.

    Attributes:
        name: Source of the figures, for people.
        link_bytes_per_second: Rate from pinned RAM to the GPU; not used on a CPU box.
        disk_bytes_per_second: Rate from disk to RAM.
        memory_bytes_per_second: Rate of the memory beside the processor that computes.
        prefill_flops_per_second: Rate of multiplying many tokens at once.
        decode_flops_per_second: Rate of multiplying one token a row.
        layer_seconds: Seconds that a layer takes however few rows there are.
    """

    name: str
    link_bytes_per_second: float
    disk_bytes_per_second: float
    memory_bytes_per_second: float
    prefill_flops_per_second: float
    decode_flops_per_second: float
    layer_seconds: float


# Link, disk and flops are those that FlexGen fitted on a cloud T4
# (FlexGen, experimental/cost_model.py: ctog_bdw, dtoc_bdw, mm_flops_p,
# mm_flops_g). Memory is three quarters of the data sheet's 320 GB/s.
# A layer of bitsandbytes int8 with outliers took 1.1 to 1.4 ms of the host's
# time on a far faster GPU, so that share is the host's and not the card's.
T4 = Throughputs(
    name="T4 constants",
    link_bytes_per_second=12.89 * GIB,
    disk_bytes_per_second=0.473 * GIB,
    memory_bytes_per_second=240e9,
    prefill_flops_per_second=21.24e12,
    decode_flops_per_second=4.3e12,
    layer_seconds=1.3e-3,
)


# Two cores, bitsandbytes int8 of one 4096 x 16384 matrix: 9.6 GB/s for one
# row, 105 GFLOP/s for 32 and 342 for 256 rows.
CPU = Throughputs(
    name="CPU constants",
    link_bytes_per_second=float("inf"),
    disk_bytes_per_second=0.473 * GIB,
    memory_bytes_per_second=9.6e9,
    prefill_flops_per_second=340e9,
    decode_flops_per_second=105e9,
    layer_seconds=0.2e-3,
)
