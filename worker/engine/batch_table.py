"""What every size of micro-batch needs and how fast it goes, for one model and workload."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.cost_model import (
    BatchMemory,
    PassSeconds,
    batch_memory,
    decode_compute_seconds,
    pass_seconds,
    prompt_compute_seconds,
)
from worker.engine.model_demands import ModelDemands, Workload
from worker.engine.throughputs import Throughputs


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one pass over a phase's weights moves."""

    link_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class BatchSpeed:
    """A micro-batch's times; step is one decode step."""

    prompt_seconds: float
    step: PassSeconds
    tokens_per_second: float


@dataclass(frozen=True)
class BatchTable:
    """Micro-batches of 1 to as many rows as a shard has.

    Attributes:
        encodes_shard: Whether one pass of the encoder serves the whole shard,
            whose encoder output is then held, and not just the micro-batch.
        needed_bytes: Of device memory beside the weights, by rows less one;
            never falling.
    """

    model: ModelDemands
    workload: Workload
    throughputs: Throughputs
    encodes_shard: bool
    needed_bytes: Sequence[int]
    # By rows; asked for again and again while placements are compared.
    _decode_seconds: dict[int, float] = field(default_factory=dict)
    _prompt_seconds: dict[int, float] = field(default_factory=dict)

    def most_rows(self, free_bytes: int) -> int:
        """The largest micro-batch for so much device memory; 0 if there is none."""
        return bisect_right(self.needed_bytes, free_bytes)

    def encoded_rows(self, rows: int) -> int:
        return encoded_rows(self.model, self.workload, rows, encodes_shard=self.encodes_shard)

    def memory(self, rows: int) -> BatchMemory:
        return batch_memory(self.model, self.workload, rows, self.encoded_rows(rows))

    def speed(self, rows: int, encode: Traffic, decode: Traffic) -> BatchSpeed:
        """How fast a micro-batch of these rows goes.

        ``tokens/s = rows * new / (prompt + steps * step)``. A causal model's
        prefill gives the first token, so it has one step less.
        """
        encoded = self.encoded_rows(rows)
        prompt = self._pass(self._compute_prompts(encoded or rows), encode if encoded else decode)
        step = self._pass(self._compute_step(rows), decode)
        prompt_seconds = prompt.total * (rows / encoded if encoded else 1)
        steps = self.workload.new_tokens - (0 if encoded else 1)
        return BatchSpeed(
            prompt_seconds=prompt_seconds,
            step=step,
            tokens_per_second=rows
            * self.workload.new_tokens
            / (prompt_seconds + steps * step.total),
        )

    def _pass(self, compute_seconds: float, traffic: Traffic) -> PassSeconds:
        return pass_seconds(
            compute_seconds, traffic.link_bytes, traffic.disk_bytes, self.throughputs
        )

    def _compute_step(self, rows: int) -> float:
        if rows not in self._decode_seconds:
            self._decode_seconds[rows] = decode_compute_seconds(
                self.model, self.workload, self.throughputs, rows
            )
        return self._decode_seconds[rows]

    def _compute_prompts(self, rows: int) -> float:
        if rows not in self._prompt_seconds:
            self._prompt_seconds[rows] = prompt_compute_seconds(
                self.model, self.workload, self.throughputs, rows
            )
        return self._prompt_seconds[rows]


def batch_tables(
    model: ModelDemands, workload: Workload, throughputs: Throughputs
) -> tuple[BatchTable, ...]:
    """One table, or for an encoder-decoder one for each use of the encoder."""
    return tuple(
        BatchTable(
            model,
            workload,
            throughputs,
            encodes_shard,
            [
                batch_memory(
                    model,
                    workload,
                    rows,
                    encoded_rows(model, workload, rows, encodes_shard=encodes_shard),
                ).total_bytes
                for rows in range(1, workload.shard_rows + 1)
            ],
        )
        for encodes_shard in ((True, False) if model.is_encoder_decoder else (False,))
    )


def encoded_rows(model: ModelDemands, workload: Workload, rows: int, *, encodes_shard: bool) -> int:
    """Rows whose encoder output is held at once; 0 for a causal model."""
    if not model.is_encoder_decoder:
        return 0
    return workload.shard_rows if encodes_shard else rows
