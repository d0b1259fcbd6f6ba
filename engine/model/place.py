"""Loads a store by a placement: resident blocks where they compute, the others through slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from engine.int8.linear import ComputeMode
from engine.interface import LoadProgress
from engine.layout.blocks import BlockFinder, BlockLayout, ModelLayout
from engine.model.build import (
    assign,
    empty_model,
    finish_model,
    put_int8_linears,
    put_narrow_tables,
    require_model,
    set_tensor,
)
from engine.model.embeddings import HostEmbedding, ReadLines, lines_in_ram, lines_on_disk
from engine.model.loaded import Int8Model
from engine.plan.on_this_machine import DEFAULT_DISK_READERS
from engine.plan.plan import Tier
from engine.plan.residency import SLOTS, STAGING_BUFFERS
from engine.store.header import TensorPlace
from engine.store.prepare import Int8Store
from engine.store.read import Segment
from engine.weights.buffers import host_buffer
from engine.weights.disk_reader import DiskReader
from engine.weights.host_transport import HostTransport
from engine.weights.loader import LoadedBlock, LoadedStore, load_store
from engine.weights.passes import ResidentPasses, StreamedPasses, WeightPasses
from engine.weights.stream import Slot, Transport, WeightStream


def place_model(
    store: Int8Store,
    placement: Mapping[str, Tier],
    device: torch.device,
    *,
    tokenizer: Any,
    mode: ComputeMode,
    on_progress: Callable[[LoadProgress], None],
    should_stop: Callable[[], bool],
    slot_count: int = SLOTS,
    disk_readers: int = DEFAULT_DISK_READERS,
) -> Int8Model:
    """Load every block to its tier and build the model around them.

    Args:
        store: The model's store.
        placement: Tier of each block, in the order of execution. What both phases use
            and what stands around the blocks has to be resident.
        device: The device that computes.
        tokenizer: The model's tokenizer.
        mode: How int8 linears multiply.
        on_progress: Told stage "load" in bytes of what is resident or in RAM.
        should_stop: Asked after every few MiB.
        slot_count: Slots for streamed blocks.
        disk_readers: Threads that read from disk.

    Raises:
        ModelLoadError: The store is damaged, or there is not enough memory.
        LoadInterruptedError: should_stop() turned true; everything is freed.
    """
    model = empty_model(store.config, dtype=store.layout.dtype)
    require_model(model, store.layout)
    with ExitStack() as cleanup:
        loaded = cleanup.enter_context(
            load_store(store, placement, device, on_progress=on_progress, should_stop=should_stop)
        )
        put_int8_linears(model, store.layout, mode=mode)
        put_narrow_tables(model, store.layout)
        builder = _Builder(model, store.layout, device, loaded, cleanup)
        slots, passes = builder.build(slot_count, disk_readers)
        finish_model(model, store.layout.ties, device, store.checkpoint)
        return Int8Model(
            model=model,
            tokenizer=tokenizer,
            device=device,
            passes=passes,
            layout=store.layout,
            blocks=loaded.blocks,
            slots=slots,
            free=cleanup.pop_all().close,
        )


class _Builder:
    """Gives a model its tensors, block by block."""

    def __init__(
        self,
        model: Any,
        layout: ModelLayout,
        device: torch.device,
        loaded: LoadedStore,
        cleanup: ExitStack,
    ) -> None:
        self._model, self._layout, self._loaded = model, layout, loaded
        self._device, self._cleanup = device, cleanup
        # The module that a block which passes through a slot is fetched for.
        self._modules = {block: name for name, (_, block) in BlockFinder(model).blocks.items()}

    def build(self, slot_count: int, disk_readers: int) -> tuple[tuple[Slot, ...], WeightPasses]:
        """Assign every tensor; the slots and passes this needs."""
        phases: dict[str, list[BlockLayout]] = {"encoder": [], "decoder": []}
        for block in self._layout.blocks:
            placed = self._loaded.blocks[block.name]
            if placed.tier == "resident":
                assign(self._model, block.tensors, placed.tensors)
            elif block.is_lookup and not self._model.config.is_encoder_decoder:
                self._keep_on_host(block, placed)
            elif block.kind in ("encoder", "decoder", "head"):
                phases["encoder" if block.kind == "encoder" else "decoder"].append(block)
            else:
                raise ValueError(f"{block.name} cannot be streamed; it has to be resident")
        phases["decoder"] += self._tied_heads()
        streams = [blocks for blocks in phases.values() if blocks]
        if not streams:
            return (), ResidentPasses()
        return self._stream(streams, slot_count, disk_readers)

    def _tied_heads(self) -> list[BlockLayout]:
        """The embedding, if it is streamed to be the head: the last thing in a pass."""
        return [
            block
            for block in self._layout.blocks
            if block.kind == "embedding"
            and self._loaded.blocks[block.name].tier != "resident"
            and set(self._layout.ties.values()) & {t.model_name for t in block.tensors}
        ]

    def _stream(
        self, streams: Sequence[Sequence[BlockLayout]], slot_count: int, disk_readers: int
    ) -> tuple[tuple[Slot, ...], WeightPasses]:
        slots = self._slots(streams, slot_count)
        staging = self._staging([block for blocks in streams for block in blocks])
        transport = self._transport(disk_readers, staging)
        passes = StreamedPasses(transport)
        for blocks in streams:
            placed = [self._loaded.blocks[block.name] for block in blocks]
            stream = WeightStream(placed, slots, transport)
            for position, block in enumerate(blocks):
                views = placed[position].stored.views(stream.slot_of(position).flat)
                self._assign_streamed(block, views)
                passes.add_stop(self._stop_module(block), stream, position)
        return slots, passes

    def _slots(self, streams: Sequence[Sequence[BlockLayout]], count: int) -> tuple[Slot, ...]:
        """No more of them than blocks, and none larger than the largest block it is for."""
        count = min(count, max(len(blocks) for blocks in streams))
        sizes = [0] * count
        for blocks in streams:
            for position, block in enumerate(blocks):
                size = self._loaded.blocks[block.name].stored.buffer_bytes
                sizes[position % count] = max(sizes[position % count], size)
        if self._device.type == "cuda":
            return tuple(
                Slot(torch.empty(size, dtype=torch.uint8, device=self._device)) for size in sizes
            )
        return tuple(
            Slot(host_buffer(size, is_pinned=False, cleanup=self._cleanup)) for size in sizes
        )

    def _staging(self, streamed: Sequence[BlockLayout]) -> tuple[torch.Tensor, ...]:
        placed = [self._loaded.blocks[block.name] for block in streamed]
        sizes = [block.stored.buffer_bytes for block in placed if block.tier == "disk"]
        if self._device.type != "cuda" or not sizes:
            return ()
        return tuple(
            host_buffer(max(sizes), is_pinned=True, cleanup=self._cleanup)
            for _ in range(STAGING_BUFFERS)
        )

    def _transport(self, disk_readers: int, staging: Sequence[torch.Tensor]) -> Transport:
        reader = DiskReader(disk_readers)
        self._cleanup.callback(reader.close)
        if self._device.type != "cuda":
            return HostTransport(reader)
        from engine.weights.cuda_transport import CudaTransport

        transport = CudaTransport(self._device, reader, staging)
        self._cleanup.callback(transport.close)
        return transport

    def _assign_streamed(self, block: BlockLayout, views: Mapping[str, torch.Tensor]) -> None:
        if block.kind != "embedding":
            assign(self._model, block.tensors, views)
            return
        for tensor in block.tensors:
            for alias, name in self._layout.ties.items():
                if name == tensor.model_name:
                    set_tensor(self._model, alias, views[tensor.name])

    def _stop_module(self, block: BlockLayout) -> torch.nn.Module:
        if block.kind == "embedding":
            head: torch.nn.Module = self._model.get_output_embeddings()
            return head
        module: torch.nn.Module = self._model.get_submodule(self._modules[block.name])
        return module

    def _keep_on_host(self, block: BlockLayout, placed: LoadedBlock) -> None:
        """Read lines of the embeddings where they are, instead of copying the whole."""
        for tensor in block.tensors:
            lines, width = tensor.shape
            module = HostEmbedding(
                lines, width, self._layout.dtype, self._device, _line_reader(placed, tensor.name)
            )
            self._model.set_submodule(tensor.model_name.rpartition(".")[0], module)


def _line_reader(block: LoadedBlock, name: str) -> ReadLines:
    if block.tier == "ram":
        return lines_in_ram(block.tensors[name])
    return lines_on_disk(*_place_of(block, name))


def _place_of(block: LoadedBlock, name: str) -> tuple[Segment, TensorPlace]:
    for segment in block.stored.segments:
        for place in segment.places:
            if place.name == name:
                return segment, place
    raise KeyError(name)
