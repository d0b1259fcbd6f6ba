"""What a micro-batch needs in memory and in time, apart from where the weights are.

The time of one pass over the weights follows FlexGen's cost model (Sheng et
al., 2023, section 4.3): copies, disk reads and compute overlap, so a pass
takes as long as the slowest of the three. That holds for two device slots if
resident and streamed layers alternate evenly and prefetch wraps around.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil

from worker.engine.cache_budget import spare_columns
from worker.engine.model_demands import BlockDemand, ModelDemands, Phase, Workload
from worker.engine.throughputs import Throughputs

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
    """The cache at its fullest: ``rows * (self columns * self KV + prompt * cross KV)``.

    Columns are what the rows' shared edge needs, as in CacheBudget: their
    tokens, an encoder-decoder's start token, and a few to spare.
    """
    columns = workload.new_tokens + (1 if model.is_encoder_decoder else workload.prompt_tokens)
    columns += spare_columns(columns)
    return rows * (
        columns * model.self_kv_bytes_per_token
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
