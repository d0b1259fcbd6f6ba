"""What of a plan this version of the engine can do: it streams nothing yet."""

from __future__ import annotations

from dataclasses import replace

from worker.engine.placement import make_resident_plan
from worker.engine.plan import Budgets, CannotRunError, Plan


def resident_plan(plan: Plan) -> Plan | None:
    """The same with every block resident; None if the model does not fit as a whole.

    The linears that the store holds a second time are loaded as transformers
    keeps them, in float32 and not in int8: three bytes more each.
    """
    budgets = _less(plan.budgets, plan.model.more_store_bytes * 3 // 4)
    try:
        return make_resident_plan(plan.model, plan.workload, budgets, plan.throughputs)
    except CannotRunError:
        return None


def _less(budgets: Budgets, device_bytes: int) -> Budgets:
    if budgets.gpu_bytes is None:
        return replace(budgets, cpu_bytes=budgets.cpu_bytes - device_bytes)
    return replace(budgets, gpu_bytes=budgets.gpu_bytes - device_bytes)
