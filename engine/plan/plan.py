"""A plan: where every block is, what that leaves room for, and how fast it will go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.plan.cost import PassSeconds
from engine.plan.demands import BlockDemand, ModelDemands, Workload
from engine.plan.rates import GIB, Throughputs

# On a CPU box "resident" means in RAM for good, and "disk" read into a RAM slot each pass.
Tier = Literal["resident", "ram", "disk"]


Resource = Literal["GPU memory", "CPU memory", "disk space"]


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The bytes that a plan may use; gpu_bytes is None on a box without a GPU."""

    gpu_bytes: int | None
    cpu_bytes: int
    disk_bytes: int

    @property
    def device_bytes(self) -> int:
        """Bytes of the memory beside the processor that computes."""
        return self.cpu_bytes if self.gpu_bytes is None else self.gpu_bytes

    @property
    def ram_tier_bytes(self) -> int:
        """For weights on their way to the device."""
        return 0 if self.gpu_bytes is None else self.cpu_bytes

    @property
    def device_memory(self) -> Resource:
        return "CPU memory" if self.gpu_bytes is None else "GPU memory"


@dataclass(frozen=True, kw_only=True)
class PlacedBlock:
    """A block and its tier."""

    block: BlockDemand
    tier: Tier


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes per tier.

    Attributes:
        resident_bytes: Weights that stay on the device.
        slot_bytes: The device slots that streamed blocks pass through, all together.
        kv_bytes: The cache at its fullest.
        encoder_state_bytes: The encoder's output, kept for decoding.
        workspace_bytes: Activations, logits and one matrix made float.
        ram_bytes: Streamed weights in pinned RAM.
        staging_bytes: Pinned buffers that disk reads land in.
        store_bytes: Bytes on disk: every block, whatever its tier.
    """

    resident_bytes: int
    slot_bytes: int
    kv_bytes: int
    encoder_state_bytes: int
    workspace_bytes: int
    ram_bytes: int
    staging_bytes: int
    store_bytes: int

    @property
    def device_bytes(self) -> int:
        return (
            self.resident_bytes
            + self.slot_bytes
            + self.kv_bytes
            + self.encoder_state_bytes
            + self.workspace_bytes
        )

    @property
    def ram_tier_bytes(self) -> int:
        return self.ram_bytes + self.staging_bytes


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How fast it will go.

    Attributes:
        load_seconds: Reading from disk what is resident or in RAM.
        prompt_seconds: A micro-batch's prefill, or its share of the encoder's pass.
        step: One decode step.
        tokens_per_second: Generated tokens of a micro-batch over its whole time.
    """

    load_seconds: float
    prompt_seconds: float
    step: PassSeconds
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that was decided and what follows from it.

    Attributes:
        slots: Number of device buffers for streamed blocks; 0 where nothing is streamed.
        rows: Rows that are decoded together.
        encoded_rows: Rows that one pass of the encoder serves; 0 for a causal model.
        rows_limit: What keeps the micro-batch from being larger.
    """

    model: ModelDemands
    workload: Workload
    budgets: Budgets
    throughputs: Throughputs
    blocks: tuple[PlacedBlock, ...]
    slots: int
    rows: int
    encoded_rows: int
    memory: MemoryUse
    prediction: Prediction
    rows_limit: str

    @property
    def limit(self) -> str:
        """The resource that sets the time of a decode step."""
        return self.prediction.step.limit

    @property
    def placement(self) -> dict[str, Tier]:
        """Each block's tier by its name, in execution order."""
        return {placed.block.name: placed.tier for placed in self.blocks}

    def blocks_at(self, tier: Tier) -> tuple[BlockDemand, ...]:
        """The blocks that live there."""
        return tuple(placed.block for placed in self.blocks if placed.tier == tier)


class CannotRunError(Exception):
    """The model cannot run within the budgets, however it is placed.

    Attributes:
        short: Fewest bytes that do, for each resource that is too small,
            given what is named for the others.
    """

    def __init__(self, model: str, short: Mapping[Resource, int]) -> None:
        self.short = dict(short)
        needed = " and ".join(f"{_rounded_up(size)} of {name}" for name, size in short.items())
        super().__init__(f"{model} cannot run within these budgets: it needs at least {needed}")


def _rounded_up(size: int) -> str:
    # Upwards, so that the figure shown is enough when it is typed.
    return f"{-(-size * 100 // GIB) / 100:.2f} GiB"
