"""One pass over a model's weights, shared by everything that is computed in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from greenlet import GreenletExit, getcurrent, greenlet

from engine.weights.stream import Transport, WeightStream

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StreamTotals:
    """What streaming took since the model was loaded."""

    streamed_bytes: int = 0
    link_wait_seconds: float = 0.0

    def since(self, earlier: StreamTotals) -> StreamTotals:
        """What was added since then."""
        return StreamTotals(
            streamed_bytes=self.streamed_bytes - earlier.streamed_bytes,
            link_wait_seconds=self.link_wait_seconds - earlier.link_wait_seconds,
        )


class WeightPasses(Protocol):
    """Runs forward passes of one model."""

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        """Run forward passes so that each streamed block is fetched once for them all.

        They enter the same part of the model (encoder, or decoder) each once,
        and no other pass may run meanwhile. An exception of one ends them all
        and is raised; the next call starts afresh.

        Args:
            forwards: Each calls the model, or its encoder, once.

        Returns:
            What each returned, in their order.
        """
        ...

    @property
    def totals(self) -> StreamTotals: ...


class ResidentPasses:
    """For a model that is on its device as a whole: there is nothing to fetch."""

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        return [forward() for forward in forwards]

    @property
    def totals(self) -> StreamTotals:
        return StreamTotals()


@dataclass(frozen=True)
class _Stop:
    """A place in the model where a streamed block is used."""

    stream: WeightStream
    position: int


class StreamedPasses:
    """Hooks into a model's streamed modules, and runs its passes.

    Passes that go together are greenlets: each runs up to the next streamed
    block, and when all are there the block is fetched once and each goes on
    through it. So nothing of the model's code has to know, and between blocks
    a pass holds no more than what it hands on.
    """

    def __init__(self, transport: Transport) -> None:
        """Passes that stream through a transport; add_stop says where."""
        self._transport = transport
        self._lock_step: _LockStep | None = None

    def add_stop(self, module: torch.nn.Module, stream: WeightStream, position: int) -> None:
        """Fetch a block before this module runs, and give its slot back after it."""
        stop = _Stop(stream, position)
        module.register_forward_pre_hook(partial(self._enter, stop))
        module.register_forward_hook(partial(self._leave, stop))

    def together(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        """Run forward passes side by side; see WeightPasses."""
        with torch.inference_mode():
            # Around them all: the mode belongs to the thread, which they share.
            if len(forwards) == 1:
                return [forwards[0]()]
            self._lock_step = _LockStep()
            try:
                return self._lock_step.run(forwards)
            finally:
                self._lock_step = None

    @property
    def totals(self) -> StreamTotals:
        return StreamTotals(
            streamed_bytes=self._transport.streamed_bytes,
            link_wait_seconds=self._transport.wait_seconds,
        )

    def _enter(self, stop: _Stop, _module: Any, _args: Any) -> None:
        if self._lock_step is None:
            stop.stream.acquire(stop.position)
        else:
            self._lock_step.wait_at(stop)

    def _leave(self, stop: _Stop, _module: Any, _args: Any, _output: Any) -> None:
        if self._lock_step is None:
            stop.stream.release(stop.position)
        else:
            self._lock_step.leave(stop)


class _LockStep:
    """Passes that meet at every streamed block."""

    def __init__(self) -> None:
        self._inside = 0
        self._scheduler = getcurrent()

    def run(self, forwards: Sequence[Callable[[], T]]) -> list[T]:
        """Run them all to their end, or to the first exception."""
        runners = [greenlet(forward) for forward in forwards]
        results: dict[greenlet, T] = {}
        try:
            waiting = self._advance(runners, results)
            while waiting:
                (stop, *others) = {id(each): each for each in waiting.values()}.values()
                if others or results:
                    raise RuntimeError("passes that go together took different ways")
                stop.stream.acquire(stop.position)
                self._inside = len(waiting)
                waiting = self._advance(list(waiting), results)
        finally:
            for runner in runners:
                if not runner.dead:
                    runner.throw(GreenletExit)
        return [results[runner] for runner in runners]

    def _advance(
        self, runners: Sequence[greenlet], results: dict[greenlet, T]
    ) -> dict[greenlet, _Stop]:
        """Let each run up to its next stop; which those are, of those not at their end."""
        waiting = {}
        for runner in runners:
            value: Any = runner.switch()
            if runner.dead:
                results[runner] = value
            else:
                waiting[runner] = value
        return waiting

    def wait_at(self, stop: _Stop) -> None:
        self._scheduler.switch(stop)

    def leave(self, stop: _Stop) -> None:
        self._inside -= 1
        if self._inside == 0:
            stop.stream.release(stop.position)
