"""A plan as a document and as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from cli.load_progress import size_text
from cli.output import duration_text, print_fields, print_table, say
from engine.plan.advice import advice, speed_text
from engine.plan.on_this_machine import LOADED_WHOLE
from engine.plan.plan import Plan, Tier

PREDICTED = "These are predictions from the model's shape, not measurements."


def plan_document(plan: Plan) -> dict[str, Any]:
    """Everything in a plan; bytes, seconds and rows as plain numbers."""
    step = plan.prediction.step
    return {
        "model": plan.model.name,
        "loaded_whole": plan.model.is_whole,
        "workload": asdict(plan.workload),
        "budgets": asdict(plan.budgets),
        "throughputs": _finite(asdict(plan.throughputs)),
        "blocks": [
            {
                "name": placed.block.name,
                "phase": placed.block.phase,
                "tier": placed.tier,
                "bytes": placed.block.weight_bytes,
            }
            for placed in plan.blocks
        ],
        "slots": plan.slots,
        "micro_batch_rows": plan.rows,
        "encoded_rows": plan.encoded_rows,
        "memory": asdict(plan.memory)
        | {
            "device_bytes": plan.memory.device_bytes,
            "ram_tier_bytes": plan.memory.ram_tier_bytes,
        },
        "prediction": {
            "load_seconds": plan.prediction.load_seconds,
            "prompt_seconds": plan.prediction.prompt_seconds,
            "step_seconds": step.total,
            "step_parts_seconds": asdict(step),
            "tokens_per_second": plan.prediction.tokens_per_second,
        },
        "limits": {"step": plan.limit, "rows": plan.rows_limit},
        "advice": advice(plan),
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no infinity, which is what a CPU's link is.
    return {name: None if value == float("inf") else value for name, value in values.items()}


def print_plan(plan: Plan) -> None:
    """A plan for people."""
    work = plan.workload
    say(
        f"{plan.model.name}: {work.prompt_tokens} prompt and {work.new_tokens} new tokens a row, "
        f"up to {work.shard_rows} rows ({plan.throughputs.name})\n"
    )
    print_table(("TIER", "SIZE", "BLOCKS"), _placement(plan), numbers=("SIZE",))
    say()
    print_table(("RESOURCE", "USED", "OF", "FOR"), _uses(plan), numbers=("USED", "OF"))
    say()
    if plan.model.is_whole:
        say(f"{LOADED_WHOLE[0].upper()}{LOADED_WHOLE[1:]}.\n")
    print_fields(_predictions(plan))
    say(f"\n{advice(plan)}\n{PREDICTED}")


def _placement(plan: Plan) -> Iterator[tuple[str, str, str]]:
    device = "CPU" if plan.budgets.gpu_bytes is None else "GPU"
    names: dict[Tier, str] = {
        "resident": f"resident on the {device}",
        "ram": "streamed from RAM",
        "disk": "streamed from disk",
    }
    for tier, name in names.items():
        if blocks := plan.blocks_at(tier):
            # decoder-007 is one of the decoder's layers.
            kinds = Counter(block.name.rpartition("-")[0] or block.name for block in blocks)
            size = sum(block.weight_bytes for block in blocks)
            shown = (f"{kind} x {n}" if n > 1 else kind for kind, n in kinds.items())
            yield name, size_text(size), ", ".join(shown)


def _uses(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    memory, budgets = plan.memory, plan.budgets
    device = {
        "weights": memory.resident_bytes,
        f"{plan.slots} slots": memory.slot_bytes,
        "KV cache": memory.kv_bytes,
        "encoder output": memory.encoder_state_bytes,
        "workspace": memory.workspace_bytes,
    }
    ram = {"weights": memory.ram_bytes, "staging": memory.staging_bytes}
    rows = [(str(budgets.device_memory), budgets.device_bytes, device)]
    if budgets.gpu_bytes is not None:
        rows.append(("CPU memory", budgets.cpu_bytes, ram))
    rows.append(("disk", budgets.disk_bytes, {"int8 copy": memory.store_bytes}))
    for name, budget, parts in rows:
        shown = ", ".join(f"{what} {size_text(size)}" for what, size in parts.items() if size)
        yield name, size_text(sum(parts.values())), size_text(budget), shown


def _predictions(plan: Plan) -> Iterator[tuple[str, str]]:
    prediction = plan.prediction
    yield "micro-batch", f"{plan.rows} rows, bounded by {plan.rows_limit}"
    if plan.encoded_rows:
        yield "encoder", f"one pass for {plan.encoded_rows} rows"
    yield "load", duration_text(prediction.load_seconds)
    yield "prompts", f"{prediction.prompt_seconds:.2f} s a micro-batch"
    yield "step", f"{prediction.step.total:.3f} s, bounded by {plan.limit}"
    yield "speed", speed_text(plan)
