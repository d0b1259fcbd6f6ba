"""What a model asks of a machine: the input of the planner, free of tensors.

Bytes and counts only, so a plan can be made for a model of which nothing but
the configuration is at hand, and for made-up ones in tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Prompt tokens that go through a layer together, where nothing says otherwise.
PREFILL_TOKENS = 2048


# "both": read by encoder and decoder, as an encoder-decoder's shared embedding is.
Phase = Literal["encode", "decode", "both"]


@dataclass(frozen=True, kw_only=True)
class BlockDemand:
    """One block of weights: what is placed and copied as a whole.

    Attributes:
        name: As the store names it.
        phase: When it is used. A causal model has only "decode".
        is_layer: One of the repeated layers, which work on every token; the
            others (embedding, head) produce something once a row.
        weight_bytes: Bytes on disk, in RAM and on the device alike.
        stays_resident: Never streamed, because either phase reads it or
            because it is too small to be worth a copy of its own.
        matrix_parameters: Weights that each token (or row) is multiplied with.
        self_kv_bytes_per_token: Bytes of the cache for a token of the decoder.
        cross_kv_bytes_per_token: Bytes of the cache for a token of the encoder's output.
    """

    name: str
    phase: Phase = "decode"
    is_layer: bool = True
    weight_bytes: int
    stays_resident: bool = False
    matrix_parameters: int = 0
    self_kv_bytes_per_token: int = 0
    cross_kv_bytes_per_token: int = 0

    @property
    def link_bytes(self) -> int:
        """What a pass copies to the device where the block is streamed.

        Nothing for an embedding that is no head: its lines are read where it is.
        """
        return self.weight_bytes if self.is_layer or self.matrix_parameters else 0


@dataclass(frozen=True, kw_only=True)
class ModelDemands:
    """A model as the planner sees it.

    Attributes:
        name: Name of the model, for messages.
        blocks: Each block, in the order of use.
        hidden_size: Width of the residual stream.
        widest_size: Width of the widest activation inside a layer.
        heads: Attention heads.
        vocabulary_size: Number of logits of a row.
        scratch_bytes: Bytes of a matrix dequantised at once.
        product_bytes: Bytes in a multiplication for each value of its widest side:
            sums, and what activations are on their way to int8.
        prefill_tokens: Prompt tokens that go through a layer together; at
            least one row's do, or one part of a long prompt.
        float_bytes: Bytes of one activation or cached value.
        heap_factor: Bytes that the allocator holds for each byte of workspace.
        more_store_bytes: Bytes of the store besides the blocks.
        is_whole: Whether transformers loads the model, whole and from its
            checkpoint: no store is made, and no block is streamed.
        state_bytes_per_row: Bytes of a row's recurrent states, whatever its length.
        keeps_scores: Whether attention writes its scores to memory, as
            transformers' eager attention does.
    """

    name: str
    blocks: tuple[BlockDemand, ...]
    hidden_size: int
    widest_size: int
    heads: int
    vocabulary_size: int
    scratch_bytes: int
    product_bytes: int = 4
    prefill_tokens: int = PREFILL_TOKENS
    float_bytes: int = 2
    heap_factor: float = 1.0
    more_store_bytes: int = 0
    is_whole: bool = False
    state_bytes_per_row: int = 0
    keeps_scores: bool = False

    @property
    def is_encoder_decoder(self) -> bool:
        return any(block.phase == "encode" for block in self.blocks)

    @property
    def store_bytes(self) -> int:
        """Bytes of disk that the int8 store takes."""
        if self.is_whole:
            return 0
        return self.more_store_bytes + sum(block.weight_bytes for block in self.blocks)

    @property
    def self_kv_bytes_per_token(self) -> int:
        return sum(block.self_kv_bytes_per_token for block in self.blocks)

    @property
    def cross_kv_bytes_per_token(self) -> int:
        return sum(block.cross_kv_bytes_per_token for block in self.blocks)

    def used_in(self, phase: Phase) -> tuple[BlockDemand, ...]:
        """The blocks that one phase reads."""
        return tuple(block for block in self.blocks if block.phase in (phase, "both"))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be generated.

    Attributes:
        prompt_tokens: Prompt tokens of each row.
        new_tokens: New tokens of each row.
        shard_rows: The rows that are at hand at once, so the largest micro-batch.
    """

    prompt_tokens: int
    new_tokens: int
    shard_rows: int = 256

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.new_tokens, self.shard_rows) < 1:
            raise ValueError("prompt_tokens, new_tokens and shard_rows start at 1")
