"""Continuous batching: rows join and leave between any two steps.

With streamed weights a step costs the same for one row as for sixty, so a row
that is finished leaves at once and a waiting prompt takes its place. Its
prompt goes through the model in the same pass over the weights that gives the
other rows their next token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engine.cache.budget import Extent
from engine.decode.admission import Admission, InFlight, RowLimit
from engine.decode.batch import Batch, Forward
from engine.decode.choice import choose_tokens
from engine.decode.forward import ForwardCalls
from engine.decode.out_of_memory import out_of_memory
from engine.decode.prefill import ChunkedPrompt, passes_of
from engine.decode.prompts import EncodedPrompt
from engine.decode.row import Row, failed
from engine.decode.waiting import RowMaker, Waiting, WaitingPrompts
from engine.decode.window import WindowCounter
from engine.interface import RequestFeed
from engine.plan.limits import BatchLimits
from engine.weights.passes import WeightPasses


@dataclass(frozen=True, kw_only=True)
class _Prefill:
    """The prompts that go through the model in one step.

    Attributes:
        whole: Rows whose prompts are read at once, in the order of their passes.
        counts: How many of them are in each pass.
        parts: Prompts of which the next part is read.
        ending: Those of them that are read to the end, so that their rows join.
        tokens: That this makes.
    """

    whole: Sequence[Row]
    counts: Sequence[int]
    parts: Sequence[ChunkedPrompt]
    ending: Sequence[ChunkedPrompt]
    tokens: int

    @property
    def joining(self) -> list[Row]:
        return [*self.whole, *(part.row for part in self.ending)]


@dataclass(kw_only=True, eq=False)
class DecodeLoop:
    """Turns a feed into results, a step at a time.

    Attributes:
        calls: The model's forward passes.
        passes: Runs them.
        alive: Rows that have a place in the cache.
        waiting: Prompts that have none yet.
        rows: Makes rows of them.
        feed: Says which rows are still wanted.
        limits: What bounds a pass.
        row_limit: What bounds the rows.
        admission: Who is next.
        window: What there is to tell.
        device: For messages.
    """

    calls: ForwardCalls
    passes: WeightPasses
    alive: Batch
    waiting: WaitingPrompts
    rows: RowMaker
    feed: RequestFeed
    limits: BatchLimits
    row_limit: RowLimit
    admission: Admission
    window: WindowCounter
    device: str
    _partly: list[ChunkedPrompt] = field(default_factory=list)
    _admitted: list[Row] = field(default_factory=list)
    _encoding: list[Waiting] = field(default_factory=list)
    _have_rows_left: bool = True

    @property
    def cache_bytes(self) -> int:
        """Of all keys and values, those of prompts that are read in parts included."""
        parts = sum(part.cache_bytes for part in self._partly)
        return self.alive.allocated_bytes + parts

    def step(self) -> bool:
        """Admit, prefill, decode and retire, once; False when there is nothing left to do.

        Raises:
            MemoryError: Or another error that is_out_of_memory(); then call recover().
        """
        with torch.inference_mode():
            self._drop_unwanted()
            self._take()
            if self._encode():
                return True
            self._admit()
            if not (self.alive.rows or self._partly or self._admitted):
                return False
            self._run(self._prefill())
            self._retire()
        return True

    def recover(self) -> None:
        """After memory ran out: every row begins anew, and fewer at a time."""
        self.window.out_of_memory_retries += 1
        in_flight = self._in_flight()
        self.alive.clear()
        self._partly, self._admitted = [], []
        encoding, self._encoding = self._encoding, []
        for row in sorted(in_flight, key=lambda row: row.times.taken, reverse=True):
            self.waiting.put_back(row.prompt, row.times.taken)
        if in_flight and encoding:
            return  # the encoder has all the memory now
        prompts = [row.prompt for row in in_flight] or [each.prompt for each in encoding]
        if len(prompts) == 1:
            self.row_limit.restore()
            self._give_up(prompts[0])
        elif encoding:
            self.row_limit.halve_encoding(len(prompts))
        else:
            self.row_limit.halve(len(prompts))

    def _give_up(self, prompt: EncodedPrompt) -> None:
        self.waiting.remove(each for each in self.waiting.prompts if each.prompt is prompt)
        self.window.results.append(failed(prompt, out_of_memory(prompt, self.device)))

    def _in_flight(self) -> list[Row]:
        return [*self.alive.rows, *(part.row for part in self._partly), *self._admitted]

    def _drop_unwanted(self) -> None:
        def is_unwanted(row: Row) -> bool:
            return not self.feed.is_wanted(row.key)

        self._have_rows_left |= bool(self.alive.drop(is_unwanted))
        self._partly = [part for part in self._partly if not is_unwanted(part.row)]

    def _take(self) -> None:
        refused = self.waiting.take(rows_left=self._have_rows_left)
        self._have_rows_left = False
        self.window.results += refused

    def _encode(self) -> bool:
        """Run the encoder, if there is room for rows and none is ready for it."""
        has_room = len(self.alive.rows) < self.row_limit.rows
        if not self.rows.is_encoder_decoder or not has_room:
            return False
        if any(each.states is not None for each in self.waiting.prompts):
            return False
        self.waiting.drop_unwanted()
        at_most = min(max(1, self.limits.encoded_rows), self.row_limit.encoded_rows)
        self._encoding = self.waiting.prompts[:at_most]
        if not self._encoding:
            return False
        started = time.perf_counter()
        # Like with like, so that little is padded.
        ordered = sorted(self._encoding, key=lambda each: -len(each.prompt.token_ids))
        prompts = [each.prompt.token_ids for each in ordered]
        forwards, first = [], 0
        for count in passes_of([len(ids) for ids in prompts], self.limits.prefill_tokens):
            some = prompts[first : first + count]
            forwards.append(lambda some=some: self.calls.encode(some))
            first += count
        states = [row for rows in self.passes.together(forwards) for row in rows]
        for each, row in zip(ordered, states, strict=True):
            each.states = row
            each.times.prefill_started = started
        self._encoding = []
        seconds = time.perf_counter() - started
        self.window.count_step(rows=0, prompt_share=1.0, seconds=seconds, model_seconds=seconds)
        return True

    def _admit(self) -> None:
        in_flight = self._in_flight()
        if len(in_flight) >= self.row_limit.rows or not self.waiting.prompts:
            return
        self.waiting.drop_unwanted()
        ready = [
            each
            for each in self.waiting.prompts
            if each.states is not None or not self.rows.is_encoder_decoder
        ]
        places = self.admission.choose(
            [each.reservation for each in ready],
            _taken_by(in_flight),
            most_rows=self.row_limit.rows,
        )
        chosen = [ready[place] for place in places]
        self.waiting.remove(chosen)
        self._admitted = [self.rows.row(each) for each in chosen]
        now = time.perf_counter()
        for row in self._admitted:
            row.times.prefill_started = row.times.prefill_started or now

    def _prefill(self) -> _Prefill:
        """Have room for the step, and say which prompts it reads."""
        at_most = self.limits.prefill_tokens
        whole = []
        for row in self._admitted:
            if len(row.decoder_tokens) > at_most:
                self._partly.append(ChunkedPrompt(row=row, cache=self.calls.own_cache()))
            else:
                whole.append(row)
        lengths = [row.prefill_tokens for row in whole]
        prefill = _Prefill(
            whole=whole,
            counts=passes_of(lengths, at_most),
            parts=list(self._partly),
            ending=[part for part in self._partly if part.is_last(at_most)],
            tokens=sum(lengths) + sum(len(part.next_part(at_most)) for part in self._partly),
        )
        self._admitted = whole
        taken = _taken_by(self._in_flight())
        self.alive.make_room(
            prefill.joining,
            reserved_rows=taken.rows,
            widest=taken.widest,
            held_bytes=taken.held_bytes,
            most_rows=self.row_limit.rows,
        )
        return prefill

    def _run(self, prefill: _Prefill) -> None:
        """One pass over the weights, and every row's next token."""
        started = time.perf_counter()
        decoding = len(self.alive.rows)
        logits = self.passes.together(self._forwards(prefill))
        parts = logits[len(logits) - len(prefill.parts) :]
        telling = logits[: len(logits) - len(prefill.parts)]
        telling += [
            part_logits
            for part, part_logits in zip(prefill.parts, parts, strict=True)
            if part in prefill.ending
        ]
        rows = [*self.alive.rows, *prefill.joining]
        ran = time.perf_counter()
        chosen = choose_tokens(telling, [row.choice for row in rows]) if rows else []
        self._take_in(prefill)
        now = time.perf_counter()
        for row, token in zip(rows, chosen, strict=True):
            row.append(token, now)
        tokens = decoding + prefill.tokens
        self.window.count_step(
            rows=len(rows),
            prompt_share=prefill.tokens / tokens,
            seconds=now - started,
            model_seconds=ran - started,
        )

    def _forwards(self, prefill: _Prefill) -> list[Forward]:
        forwards = [self.alive.decoding()] if self.alive.rows else []
        first = 0
        for count in prefill.counts:
            forwards.append(self.alive.starting(first, count))
            first += count
        return forwards + [self._reading(part) for part in prefill.parts]

    def _reading(self, part: ChunkedPrompt) -> Forward:
        tokens = part.next_part(self.limits.prefill_tokens)
        return lambda: self.calls.prefill_part(tokens, part.read_tokens, part.cache)

    def _take_in(self, prefill: _Prefill) -> None:
        for place, part in enumerate(prefill.ending, start=len(prefill.whole)):
            self.alive.take_in(place, part.cache)
        self.alive.step_over()
        for part in prefill.parts:
            part.read_tokens += len(part.next_part(self.limits.prefill_tokens))
        self._partly = [part for part in prefill.parts if part not in prefill.ending]
        self._admitted = []

    def _retire(self) -> None:
        finished = self.alive.drop(lambda row: row.is_finished)
        if finished:
            self._have_rows_left = True
            self.row_limit.worked()
            self.window.results += [self.rows.result(row) for row in finished]


def _taken_by(rows: Sequence[Row]) -> InFlight:
    return InFlight(
        rows=len(rows),
        widest=Extent(
            max((row.extent.tokens for row in rows), default=0),
            max((row.extent.source_tokens for row in rows), default=0),
        ),
        held_bytes=sum(row.reservation.held_bytes for row in rows),
    )
