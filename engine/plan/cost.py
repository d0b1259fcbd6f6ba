"""What a micro-batch needs in memory and in time, apart from where the weights are.

The time of one pass over the weights follows FlexGen's cost model (Sheng et
al., 2023, section 4.3): copies, disk reads and compute overlap, so a pass
takes as long as the slowest of the three. That holds for two device slots if
resident and streamed layers alternate evenly and prefetch wraps around.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from engine.cache.budget import spare_columns
from engine.plan.demands import BlockDemand, ModelDemands, Phase, Workload
from engine.plan.rates import Throughputs

ACCUMULATOR_BYTES = 4  # int32 products and float32 softmax


@dataclass(frozen=True, kw_only=True)
class BatchMemory:
    """Device bytes that grow with the rows; the largest of the phases' sums is needed."""

    kv_bytes: int
    encoder_state_bytes: int
    workspace_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.kv_bytes + self.encoder_state_bytes + self.workspace_bytes


def batch_memory(
    model: ModelDemands, workload: Workload, rows: int, encoded_rows: int
) -> BatchMemory:
    """Device bytes of a micro-batch; never less for more rows.

    Args:
        model: The model.
        workload: Lengths of prompt and completion, in tokens.
        rows: Rows that are decoded together.
        encoded_rows: Rows whose encoder output is held; 0 for a causal model.
    """
    kv = kv_bytes(model, workload, rows)
    states = encoded_rows * workload.prompt_tokens * model.hidden_size * model.float_bytes
    decoding = _decode_workspace_bytes(model, workload, rows, kv)
    prompts = _prompt_workspace_bytes(model, workload, encoded_rows or rows)
    # An encoder is done, and its workspace free, before the cache is filled.
    beside_cache = prompts - kv if model.is_encoder_decoder else prompts
    return BatchMemory(
        kv_bytes=kv,
        encoder_state_bytes=states,
        workspace_bytes=ceil(max(decoding, beside_cache) * model.heap_factor),
    )


def kv_bytes(model: ModelDemands, workload: Workload, rows: int) -> int:
    """The cache at its fullest: ``rows * (states + self columns * self KV + prompt * cross KV)``.

    Columns are what the rows' shared edge needs, as in CacheBudget: their
    tokens, an encoder-decoder's start token, and a few to spare.
    """
    columns = workload.new_tokens + (1 if model.is_encoder_decoder else workload.prompt_tokens)
    columns += spare_columns(columns)
    return rows * (
        model.state_bytes_per_row
        + columns * model.self_kv_bytes_per_token
        + workload.prompt_tokens * model.cross_kv_bytes_per_token
    )


def _decode_workspace_bytes(model: ModelDemands, workload: Workload, rows: int, kv: int) -> int:
    context = workload.prompt_tokens + workload.new_tokens
    scores = rows * model.heads * context * (model.float_bytes + ACCUMULATOR_BYTES)
    # The model's dtype, a float32 copy to sample from and one that is sorted.
    logits = rows * model.vocabulary_size * (model.float_bytes + 2 * ACCUMULATOR_BYTES)
    caching_layers = sum(block.self_kv_bytes_per_token > 0 for block in model.blocks)
    # A layer's cache grows by concatenation: for a moment the old and the new are there.
    growth = kv // max(caching_layers, 1)
    return _layer_workspace_bytes(model, rows) + scores + logits + growth


def _prompt_workspace_bytes(model: ModelDemands, workload: Workload, rows: int) -> int:
    """Prefill or encoding: a few prompts at a time go through the layer on the device."""
    prompt = workload.prompt_tokens
    rows_at_once = min(rows, max(1, model.prefill_tokens // prompt))
    # What all rows carry from layer to layer; an encoder's is its output, counted there.
    carried = 0 if model.is_encoder_decoder else rows * prompt * model.hidden_size
    scores = rows_at_once * model.heads * prompt * prompt * model.keeps_scores
    logits = rows * model.vocabulary_size * (model.float_bytes + 2 * ACCUMULATOR_BYTES)
    return (
        _layer_workspace_bytes(model, rows_at_once * prompt)
        + carried * model.float_bytes
        + scores * (model.float_bytes + ACCUMULATOR_BYTES)
        + (0 if model.is_encoder_decoder else logits)
    )


def _layer_workspace_bytes(model: ModelDemands, tokens: int) -> int:
    """Inside one layer: a piece of a matrix made float, activations in and out, products."""
    activations = 4 * model.hidden_size + 2 * model.widest_size
    return (
        model.scratch_bytes
        + tokens * activations * model.float_bytes
        + tokens * model.widest_size * model.product_bytes
    )


def decode_compute_seconds(
    model: ModelDemands, workload: Workload, throughputs: Throughputs, rows: int
) -> float:
    """One decode step without any copying: multiplying, or reading weights and cache."""
    mean_self_tokens = workload.new_tokens / 2
    if not model.is_encoder_decoder:
        mean_self_tokens += workload.prompt_tokens
    seconds = 0.0
    for block, count in _counted(model, "decode"):
        cache = rows * (
            mean_self_tokens * block.self_kv_bytes_per_token
            + workload.prompt_tokens * block.cross_kv_bytes_per_token
        )
        # Of an embedding that is no head, only the rows' own lines are read.
        weights = block.weight_bytes if block.matrix_parameters else 0
        multiplying = 2 * block.matrix_parameters * rows / throughputs.decode_flops_per_second
        reading = (weights + cache) / throughputs.memory_bytes_per_second
        seconds += count * (max(multiplying, reading) + block.is_layer * throughputs.layer_seconds)
    return seconds


def prompt_compute_seconds(
    model: ModelDemands, workload: Workload, throughputs: Throughputs, rows: int
) -> float:
    """Prefill of a causal model, or an encoder's pass, without any copying."""
    phase: Phase = "encode" if model.is_encoder_decoder else "decode"
    tokens = rows * workload.prompt_tokens
    passes = max(1.0, tokens / max(model.prefill_tokens, workload.prompt_tokens))
    seconds = 0.0
    for block, count in _counted(model, phase):
        # Only the last position's logits are wanted.
        multiplied = tokens if block.is_layer else rows if phase == "decode" else 0
        seconds += count * (
            2 * block.matrix_parameters * multiplied / throughputs.prefill_flops_per_second
            + block.is_layer * passes * throughputs.layer_seconds
        )
    return seconds


def _counted(model: ModelDemands, phase: Phase) -> list[tuple[BlockDemand, int]]:
    """Blocks of the phase, those that cost the same together."""
    alike: Counter[tuple[int, ...]] = Counter()
    example: dict[tuple[int, ...], BlockDemand] = {}
    for block in model.used_in(phase):
        key = (
            block.is_layer,
            block.weight_bytes,
            block.matrix_parameters,
            block.self_kv_bytes_per_token,
            block.cross_kv_bytes_per_token,
        )
        alike[key] += 1
        example.setdefault(key, block)
    return [(example[key], count) for key, count in alike.items()]


@dataclass(frozen=True, kw_only=True)
class PassSeconds:
    """One pass over a phase's weights: three things that overlap, so the slowest counts."""

    compute: float
    link: float
    disk: float

    @property
    def total(self) -> float:
        return max(self.compute, self.link, self.disk)

    @property
    def limit(self) -> str:
        """What the other two wait for."""
        if self.total == self.compute:
            return "compute"
        return "host-to-GPU link" if self.total == self.link else "disk"


def pass_seconds(
    compute_seconds: float, link_bytes: int, disk_bytes: int, throughputs: Throughputs
) -> PassSeconds:
    """One pass, from what has to be computed, copied to the GPU and read from disk."""
    return PassSeconds(
        compute=compute_seconds,
        link=link_bytes / throughputs.link_bytes_per_second,
        disk=disk_bytes / throughputs.disk_bytes_per_second,
    )


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
        needed_bytes: Bytes of device memory beside the weights, by rows less one;
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
