"""Decides which blocks stay on the device, which are streamed, and how many rows go together.

The device's memory is shared by resident blocks and the KV cache. Every way
to keep some layers resident is tried, each with the largest batch that then
fits, and the one that generates most tokens a second is taken: often that is
to stream more and to batch more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from engine.plan.cost import BatchSpeed, BatchTable, Traffic, batch_tables
from engine.plan.demands import BlockDemand, ModelDemands, Workload
from engine.plan.plan import (
    Budgets,
    CannotRunError,
    MemoryUse,
    PlacedBlock,
    Plan,
    Prediction,
    Resource,
    Tier,
)
from engine.plan.rates import Throughputs
from engine.plan.residency import HostPlacement, Residency, host_placements, residencies


def make_plan(
    model: ModelDemands, workload: Workload, budgets: Budgets, throughputs: Throughputs
) -> Plan:
    """The placement and micro-batch that generate the most tokens a second.

    Raises:
        CannotRunError: There is none within the budgets.
    """
    return _best_plan(model, workload, budgets, throughputs, list(residencies(model)))


def _best_plan(
    model: ModelDemands,
    workload: Workload,
    budgets: Budgets,
    throughputs: Throughputs,
    ways: Sequence[Residency],
) -> Plan:
    tables = batch_tables(model, workload, throughputs)
    best = _best_choice(model, tables, budgets, ways)
    if best is None:
        raise CannotRunError(model.name, _shortage(model, tables, budgets, ways))
    return best.plan(budgets)


@dataclass(frozen=True)
class _Choice:
    """One complete way to run the model."""

    table: BatchTable
    rows: int
    residency: Residency
    host_placement: HostPlacement

    @cached_property
    def speed(self) -> BatchSpeed:
        return self.table.speed(
            self.rows,
            Traffic(
                link_bytes=self.residency.encode.link_bytes,
                disk_bytes=self.host_placement.encode.disk_bytes,
            ),
            Traffic(
                link_bytes=self.residency.decode.link_bytes,
                disk_bytes=self.host_placement.decode.disk_bytes,
            ),
        )

    @cached_property
    def merit(self) -> tuple[float, int, int]:
        """The speed; of equally fast ones, what copies less, then what holds less."""
        return (
            self.speed.tokens_per_second,
            -self.residency.streamed_bytes,
            -self.residency.resident_bytes,
        )

    def plan(self, budgets: Budgets) -> Plan:
        table = self.table
        blocks = tuple(PlacedBlock(block=b, tier=self._tier(b)) for b in table.model.blocks)
        at_most = self.rows == table.workload.shard_rows
        return Plan(
            model=table.model,
            workload=table.workload,
            budgets=budgets,
            throughputs=table.throughputs,
            blocks=blocks,
            slots=len(self.residency.slot_sizes),
            rows=self.rows,
            encoded_rows=table.encoded_rows(self.rows),
            memory=self._memory(),
            prediction=Prediction(
                load_seconds=_load_seconds(blocks, table.throughputs),
                prompt_seconds=self.speed.prompt_seconds,
                step=self.speed.step,
                tokens_per_second=self.speed.tokens_per_second,
            ),
            rows_limit="rows in a shard" if at_most else budgets.device_memory,
        )

    def _tier(self, block: BlockDemand) -> Tier:
        streamed = self.residency.streamed_names
        if block.name not in streamed:
            return "resident"
        return "ram" if block.name in self.host_placement.in_ram else "disk"

    def _memory(self) -> MemoryUse:
        batch = self.table.memory(self.rows)
        return MemoryUse(
            resident_bytes=self.residency.resident_bytes,
            slot_bytes=self.residency.slot_bytes,
            kv_bytes=batch.kv_bytes,
            encoder_state_bytes=batch.encoder_state_bytes,
            workspace_bytes=batch.workspace_bytes,
            ram_bytes=self.host_placement.ram_bytes,
            staging_bytes=self.host_placement.staging_bytes,
            store_bytes=self.table.model.store_bytes,
        )


def _best_choice(
    model: ModelDemands,
    tables: Sequence[BatchTable],
    budgets: Budgets,
    ways: Sequence[Residency],
) -> _Choice | None:
    if model.store_bytes > budgets.disk_bytes:
        return None
    best: _Choice | None = None
    on_cpu = budgets.gpu_bytes is None
    for residency in ways:
        for table in tables:
            rows = table.most_rows(budgets.device_bytes - residency.device_bytes)
            if not rows or (best and _ceiling(table, rows, residency) < best.merit[0]):
                continue
            for host_placement in host_placements(
                residency, budgets.ram_tier_bytes, reads_into_slots=on_cpu
            ):
                choice = _Choice(table, rows, residency, host_placement)
                if best is None or choice.merit > best.merit:
                    best = choice
    return best


def _ceiling(table: BatchTable, rows: int, residency: Residency) -> float:
    """Tokens a second if nothing had to come from disk, to spare the search of host placements."""
    return table.speed(
        rows,
        Traffic(link_bytes=residency.encode.link_bytes),
        Traffic(link_bytes=residency.decode.link_bytes),
    ).tokens_per_second


def _load_seconds(blocks: Sequence[PlacedBlock], throughputs: Throughputs) -> float:
    """Disk reads of what has another tier, while resident blocks are copied on."""
    read = sum(each.block.weight_bytes for each in blocks if each.tier != "disk")
    copied = sum(each.block.weight_bytes for each in blocks if each.tier == "resident")
    return max(read / throughputs.disk_bytes_per_second, copied / throughputs.link_bytes_per_second)


def _shortage(
    model: ModelDemands,
    tables: Sequence[BatchTable],
    budgets: Budgets,
    ways: Sequence[Residency],
) -> dict[Resource, int]:
    """The smallest budgets that would do, for every resource that is too small.

    The device comes first; then as little RAM as does with that much of it.
    """
    one_row = min(table.needed_bytes[0] for table in tables)
    needs = [
        (each.device_bytes + one_row, 0 if budgets.gpu_bytes is None else each.least_ram_bytes)
        for each in ways
    ]
    device_bytes = max(min(device for device, _ in needs), budgets.device_bytes)
    ram_bytes = min(ram for device, ram in needs if device <= device_bytes)
    short: dict[Resource, int] = {}
    if device_bytes > budgets.device_bytes:
        short[budgets.device_memory] = device_bytes
    if ram_bytes > budgets.ram_tier_bytes:
        short["CPU memory"] = ram_bytes
    if model.store_bytes > budgets.disk_bytes:
        short["disk space"] = model.store_bytes
    return short
