"""One sentence on what would make a plan faster, from planning again with more."""

from __future__ import annotations

from dataclasses import replace

from engine.plan.demands import Workload
from engine.plan.plan import Budgets, Plan
from engine.plan.rates import GIB
from engine.plan.search import make_plan

# Less is not worth a sentence.
WORTH_TELLING = 1.1


def advice(plan: Plan) -> str:
    """What would help most: CPU memory, larger shards, or shorter rows."""
    return (
        _with_more_cpu_memory(plan)
        or _with_larger_shards(plan)
        or _with_shorter_completions(plan)
        or f"Nothing that can be set would make it much faster: its bound is {plan.limit}."
    )


def speed_text(plan: Plan) -> str:
    """The predicted speed, in no more digits than a prediction deserves."""
    speed = plan.prediction.tokens_per_second
    return f"{speed:.1f} tokens/s" if speed < 100 else f"{speed:.0f} tokens/s"


def _with_more_cpu_memory(plan: Plan) -> str:
    if not plan.blocks_at("disk"):
        return ""
    wanted = plan.budgets.cpu_bytes + sum(block.weight_bytes for block in plan.blocks_at("disk"))
    better = _again(plan, budgets=replace(plan.budgets, cpu_bytes=wanted))
    if not _is_worth_telling(plan, better):
        return ""
    used = _cpu_bytes_used(better)
    return f"With {used / GIB:.1f} GiB of CPU memory to use, about {speed_text(better)}."


def _with_larger_shards(plan: Plan) -> str:
    if plan.rows < plan.workload.shard_rows:
        return ""
    rows = 2 * plan.workload.shard_rows
    better = _again(plan, workload=replace(plan.workload, shard_rows=rows))
    if not _is_worth_telling(plan, better):
        return ""
    return f"With --shard-size {rows}, about {speed_text(better)} where a job has as many prompts."


def _with_shorter_completions(plan: Plan) -> str:
    tokens = plan.workload.new_tokens // 2
    if not tokens:
        return ""
    better = _again(plan, workload=replace(plan.workload, new_tokens=tokens))
    if better.rows == plan.rows or not _is_worth_telling(plan, better):
        return ""
    return (
        f"Rows that end sooner leave room for more: with {tokens} new tokens, {better.rows} rows "
        f"and about {speed_text(better)}."
    )


def _again(plan: Plan, *, workload: Workload | None = None, budgets: Budgets | None = None) -> Plan:
    return make_plan(
        plan.model, workload or plan.workload, budgets or plan.budgets, plan.throughputs
    )


def _is_worth_telling(plan: Plan, better: Plan) -> bool:
    before, after = plan.prediction.tokens_per_second, better.prediction.tokens_per_second
    return after >= before * WORTH_TELLING


def _cpu_bytes_used(plan: Plan) -> int:
    on_cpu = plan.budgets.gpu_bytes is None
    return plan.memory.device_bytes if on_cpu else plan.memory.ram_tier_bytes
