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
from engine.decode.prefill import ChunkedPrompt, Prefill, passes_of
from engine.decode.row import Row
from engine.decode.waiting import WaitingRows
from engine.decode.window import WindowCounter
from engine.interface import RequestFeed
from engine.plan.limits import BatchLimits
from engine.weights.passes import WeightPasses

# Halving 2^16 rows down to one, with the encoder's prompts beside them, takes fewer.
MOST_RECOVERIES = 40


@dataclass(kw_only=True, eq=False)
class DecodeLoop:
    """Turns a feed into results, a step at a time.

    Attributes:
        calls: The model's forward passes.
        passes: Runs them.
        batch: Rows that have a place in the cache.
        waiting: Rows that have none yet.
        feed: Says which rows are still wanted.
        limits: Bounds of a pass.
        row_limit: Bound on the rows.
        admission: Decides which row is next.
        window: Counts what is told of the steps.
        tokenizer: Decodes completions.
        is_encoder_decoder: Whether prompts go to an encoder.
        device: The device's name, for messages.
    """

    calls: ForwardCalls
    passes: WeightPasses
    batch: Batch
    waiting: WaitingRows
    feed: RequestFeed
    limits: BatchLimits
    row_limit: RowLimit
    admission: Admission
    window: WindowCounter
    tokenizer: object
    is_encoder_decoder: bool
    device: str
    _chunked: list[ChunkedPrompt] = field(default_factory=list)
    _admitted: list[Row] = field(default_factory=list)
    _encoding: list[Row] = field(default_factory=list)
    _rows_departed: bool = True
    _recoveries: int = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values, those of prompts that are read in chunks included."""
        return self.batch.allocated_bytes + sum(each.cache_bytes for each in self._chunked)

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
            self._reread()
            self._admit()
            if not (self.batch.rows or self._chunked or self._admitted):
                return False
            self._run(self._prefill())
            self._retire()
        self._recoveries = 0
        return True

    def recover(self) -> None:
        """After memory ran out: every row begins anew, and fewer at a time.

        Rows that keep running out of memory, however few there are, end with
        out_of_memory: a loop that gives no row a token must not go on.
        """
        self.window.out_of_memory_retries += 1
        self._recoveries += 1
        in_flight = self._in_flight()
        self.batch.clear()
        self._chunked, self._admitted = [], []
        encoding, self._encoding = self._encoding, []
        for row in sorted(in_flight, key=lambda row: row.times.taken, reverse=True):
            self.waiting.put_back(row)
        if self._recoveries > MOST_RECOVERIES:
            for row in in_flight or encoding:
                self._give_up(row)
            self._recoveries = 0
            return
        if in_flight and encoding:
            # It does not fit beside rows: from now on it has all the memory.
            self.row_limit.encodes_alone = True
            return
        rows = in_flight or encoding
        if len(rows) == 1:
            self.row_limit.restore()
            self._give_up(rows[0])
        elif encoding:
            self.row_limit.halve_encoding(len(rows))
        else:
            self.row_limit.halve(len(rows))

    def _give_up(self, row: Row) -> None:
        self.waiting.remove([row])
        self.window.results.append(row.failed(out_of_memory(row, self.device)))

    def _in_flight(self) -> list[Row]:
        return [*self.batch.rows, *(each.row for each in self._chunked), *self._admitted]

    def _drop_unwanted(self) -> None:
        def is_unwanted(row: Row) -> bool:
            return not self.feed.is_wanted(row.key)

        self._rows_departed |= bool(self.batch.drop(is_unwanted))
        self._chunked = [each for each in self._chunked if not is_unwanted(each.row)]

    def _take(self) -> None:
        refused = self.waiting.take(rows_departed=self._rows_departed)
        self._rows_departed = False
        self.window.results += refused

    def _encode(self) -> bool:
        """Run the encoder, if there is room for rows and none is ready for it."""
        has_room = len(self.batch.rows) < self.row_limit.rows
        if not self.is_encoder_decoder or not has_room:
            return False
        if self.row_limit.encodes_alone:
            if self.batch.rows:
                return False
            self.batch.clear()  # the memory of rows that have left
        if any(row.states is not None for row in self.waiting.rows):
            return False
        self.waiting.drop_unwanted()
        at_most = min(max(1, self.limits.encoded_rows), self.row_limit.encoded_rows)
        self._encoding = self.waiting.rows[:at_most]
        if not self._encoding:
            return False
        started = time.perf_counter()
        # Like with like, so that little is padded.
        ordered = sorted(self._encoding, key=lambda row: -len(row.source_tokens))
        prompts = [row.source_tokens for row in ordered]
        forwards, first = [], 0
        for count in passes_of([len(ids) for ids in prompts], self.limits.prefill_tokens):
            some = prompts[first : first + count]
            forwards.append(lambda some=some: self.calls.encode(some))
            first += count
        states = [each for some in self.passes.together(forwards) for each in some]
        for row, each in zip(ordered, states, strict=True):
            row.states = each
            row.times.prefill_started = started
        self._encoding = []
        seconds = time.perf_counter() - started
        self.window.count_step(rows=0, prompt_share=1.0, seconds=seconds, model_seconds=seconds)
        return True

    def _reread(self) -> None:
        """Take out rows that have to be read anew, to join again in this step."""
        boundary = self.calls.rereads_at
        if boundary is None:
            return
        rows = self.batch.drop(lambda row: row.cached_tokens <= boundary < len(row.tokens))
        for row in rows:
            row.cached_tokens = 0
        self._admitted += rows

    def _admit(self) -> None:
        in_flight = self._in_flight()
        if len(in_flight) >= self.row_limit.rows or not self.waiting.rows:
            return
        self.waiting.drop_unwanted()
        ready = [
            row
            for row in self.waiting.rows
            if row.states is not None or not self.is_encoder_decoder
        ]
        places = self.admission.choose(
            [row.reservation for row in ready],
            _taken_by(in_flight),
            most_rows=self.row_limit.rows,
        )
        chosen = [ready[place] for place in places]
        self.waiting.remove(chosen)
        self._admitted += chosen
        now = time.perf_counter()
        for row in chosen:
            row.times.prefill_started = row.times.prefill_started or now

    def _prefill(self) -> Prefill:
        """Have room for the step, and say which prompts it reads."""
        at_most = self.limits.prefill_tokens
        whole = []
        for row in self._admitted:
            if len(row.tokens) > at_most and not self.calls.reads_whole:
                self._chunked.append(ChunkedPrompt(row=row, cache=self.calls.own_cache()))
            else:
                whole.append(row)
        lengths = [row.unread_tokens for row in whole]
        prefill = Prefill(
            whole=whole,
            counts=passes_of(lengths, at_most, may_pad=not self.calls.reads_whole),
            chunked=list(self._chunked),
            ending=[each for each in self._chunked if each.is_last(at_most)],
            tokens=sum(lengths) + sum(len(each.next_chunk(at_most)) for each in self._chunked),
        )
        self._admitted = whole
        taken = _taken_by(self._in_flight())
        self.batch.make_room(
            prefill.joining,
            reserved_rows=taken.rows,
            widest=taken.widest,
            held_bytes=taken.held_bytes,
            most_rows=self.row_limit.rows,
        )
        return prefill

    def _run(self, prefill: Prefill) -> None:
        """One pass over the weights, and every row's next token."""
        started = time.perf_counter()
        decoding = len(self.batch.rows)
        logits = self.passes.together(self._forwards(prefill))
        first_chunk = len(logits) - len(prefill.chunked)
        telling = logits[:first_chunk] + [
            chunk_logits
            for chunk, chunk_logits in zip(prefill.chunked, logits[first_chunk:], strict=True)
            if chunk in prefill.ending
        ]
        rows = [*self.batch.rows, *prefill.joining]
        ran = time.perf_counter()
        chosen = choose_tokens(telling, rows) if rows else []
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

    def _forwards(self, prefill: Prefill) -> list[Forward]:
        forwards = [self.batch.decoding()] if self.batch.rows else []
        first = 0
        for count in prefill.counts:
            forwards.append(self.batch.starting(first, count))
            first += count
        return forwards + [self._reading(chunk) for chunk in prefill.chunked]

    def _reading(self, chunk: ChunkedPrompt) -> Forward:
        tokens = chunk.next_chunk(self.limits.prefill_tokens)
        length = len(chunk.row.tokens)
        return lambda: self.calls.prefill_chunk(tokens, chunk.read_tokens, length, chunk.cache)

    def _take_in(self, prefill: Prefill) -> None:
        for place, chunk in enumerate(prefill.ending, start=len(prefill.whole)):
            self.batch.take_in(place, chunk.cache)
        self.batch.step_over()
        for chunk in prefill.chunked:
            chunk.read_tokens += len(chunk.next_chunk(self.limits.prefill_tokens))
        self._chunked = [chunk for chunk in prefill.chunked if chunk not in prefill.ending]
        self._admitted = []

    def _retire(self) -> None:
        finished = self.batch.drop(lambda row: row.is_finished)
        if finished:
            self._rows_departed = True
            self.row_limit.worked()
            self.window.results += [row.result(self.tokenizer) for row in finished]


def _taken_by(rows: Sequence[Row]) -> InFlight:
    return InFlight(
        rows=len(rows),
        widest=Extent(
            max((row.reservation.extent.tokens for row in rows), default=0),
            max((row.reservation.extent.source_tokens for row in rows), default=0),
        ),
        held_bytes=sum(row.reservation.held_bytes for row in rows),
    )
