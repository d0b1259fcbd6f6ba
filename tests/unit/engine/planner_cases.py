"""Made-up models, workloads, machines and budgets for the planner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from engine.plan.demands import BlockDemand, ModelDemands, Phase, Workload
from engine.plan.plan import Budgets, CannotRunError, Plan, Resource
from engine.plan.rates import Throughputs
from engine.plan.search import make_plan

MIB = 2**20


def layer(name: str, size: int, *, phase: Phase = "decode", is_causal: bool = True) -> BlockDemand:
    kv = 0 if phase == "encode" else 4096
    return BlockDemand(
        name=name,
        phase=phase,
        weight_bytes=size,
        matrix_parameters=size,
        self_kv_bytes_per_token=kv,
        cross_kv_bytes_per_token=0 if is_causal else kv,
    )


def causal_model(layer_sizes: list[int], embedding: int, head: int | None) -> ModelDemands:
    """Embedding, layers, a norm, and a head unless the embedding is the head."""
    blocks = [
        BlockDemand(
            name="embedding",
            is_layer=False,
            weight_bytes=embedding,
            matrix_parameters=0 if head else embedding // 2,
        ),
        *(layer(f"decoder-{i}", size) for i, size in enumerate(layer_sizes)),
        BlockDemand(name="rest", is_layer=False, weight_bytes=64, stays_resident=True),
    ]
    if head:
        blocks.append(
            BlockDemand(
                name="head",
                is_layer=False,
                weight_bytes=head,
                matrix_parameters=head // 2,
            )
        )
    return _model(blocks)


def encoder_decoder(encoder: list[int], decoder: list[int], shared: int) -> ModelDemands:
    return _model(
        [
            BlockDemand(
                name="embedding",
                phase="both",
                is_layer=False,
                weight_bytes=shared,
                stays_resident=True,
            ),
            *(layer(f"encoder-{i}", size, phase="encode") for i, size in enumerate(encoder)),
            *(layer(f"decoder-{i}", size, is_causal=False) for i, size in enumerate(decoder)),
        ]
    )


def _model(blocks: list[BlockDemand]) -> ModelDemands:
    return ModelDemands(
        name="made-up",
        blocks=tuple(blocks),
        hidden_size=256,
        widest_size=1024,
        heads=8,
        vocabulary_size=1000,
        scratch_bytes=512 * 1024,
    )


_sizes = st.one_of(
    # Alike, as in real models, and all different.
    st.builds(lambda n, size: [size] * n, st.integers(1, 8), st.integers(MIB, 8 * MIB)),
    st.lists(st.integers(MIB, 8 * MIB), min_size=1, max_size=5),
)
_some_bytes = st.integers(MIB, 16 * MIB)
models = st.one_of(
    st.builds(causal_model, _sizes, _some_bytes, st.none() | _some_bytes),
    st.builds(encoder_decoder, _sizes, _sizes, _some_bytes),
)
workloads = st.builds(
    Workload,
    prompt_tokens=st.integers(1, 300),
    new_tokens=st.integers(1, 300),
    shard_rows=st.integers(1, 12),
)
_rate = st.floats(1e6, 1e12)
throughputs = st.builds(
    Throughputs,
    name=st.just("made-up"),
    link_bytes_per_second=_rate,
    disk_bytes_per_second=_rate,
    memory_bytes_per_second=_rate,
    prefill_flops_per_second=_rate,
    decode_flops_per_second=_rate,
    layer_seconds=st.floats(0, 1e-2),
)
extra_bytes = st.integers(0, 100 * MIB)
no_budgets = st.builds(
    Budgets,
    gpu_bytes=st.none() | st.just(0),
    cpu_bytes=st.just(0),
    disk_bytes=st.just(0),
)


def with_more(budget: Budgets, gpu: int, cpu: int, disk: int) -> Budgets:
    return replace(
        budget,
        gpu_bytes=None if budget.gpu_bytes is None else budget.gpu_bytes + gpu,
        cpu_bytes=budget.cpu_bytes + cpu,
        disk_bytes=budget.disk_bytes + disk,
    )


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the planner is asked."""

    model: ModelDemands
    workload: Workload
    budgets: Budgets
    throughputs: Throughputs

    def plan(self) -> Plan:
        return make_plan(self.model, self.workload, self.budgets, self.throughputs)

    def refusal(self) -> dict[Resource, int]:
        """What the planner says is missing; empty if it has a plan."""
        try:
            self.plan()
        except CannotRunError as error:
            return error.short
        return {}

    def granted(self, short: Mapping[Resource, int]) -> Case:
        """The same with these budgets in place of its own."""
        named = {_FIELD_OF[resource]: size for resource, size in short.items()}
        return replace(self, budgets=replace(self.budgets, **named))

    def with_more(self, gpu: int, cpu: int, disk: int) -> Case:
        return replace(self, budgets=with_more(self.budgets, gpu, cpu, disk))


_FIELD_OF: Mapping[Resource, str] = {
    "GPU memory": "gpu_bytes",
    "CPU memory": "cpu_bytes",
    "disk space": "disk_bytes",
}
any_cases = st.builds(
    Case,
    model=models,
    workload=workloads,
    budgets=st.builds(with_more, no_budgets, extra_bytes, extra_bytes, extra_bytes),
    throughputs=throughputs,
)


@st.composite
def planned_cases(draw: st.DrawFn) -> Case:
    """Cases with a plan, from those that just have one to those with memory to spare."""
    case = draw(any_cases)
    return case.granted(case.refusal()).with_more(
        draw(extra_bytes), draw(extra_bytes), draw(extra_bytes)
    )


def gaps_around(tiers: list[bool]) -> list[int]:
    """How many False stand between each True and the next, around the wrap."""
    at = [i for i, is_resident in enumerate(tiers) if is_resident]
    return [
        (at[(i + 1) % len(at)] - here - 1) % len(tiers) if len(at) > 1 else len(tiers) - 1
        for i, here in enumerate(at)
    ]


def layers_of(plan: Plan, phase: Phase) -> list[str]:
    """The tiers of a phase's layers, in execution order."""
    return [
        placed.tier
        for placed in plan.blocks
        if placed.block.is_layer and placed.block.phase == phase
    ]
