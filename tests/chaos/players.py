"""Several processes that play runs at once, each on a stage and servers of its own.

Most of a run is waiting, for leases, sweeps and processes that start.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from queue import Empty

from tests.chaos.fault import Fault, play_once
from tests.chaos.faults import FAULTS
from tests.chaos.stage import DatabaseKind, Servers, StageKeeper
from tests.chaos.verdict import FaultFree, Verdict

# What a player takes at a time: small, so that all end together, and large enough
# for a stage to be worth its set-up.
RUNS_PER_TURN = 10
SECONDS_BETWEEN_LOOKS = 5.0


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Some runs of a fault on one database."""

    fault: str
    kind: DatabaseKind
    numbers: range


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a turn came to."""

    turn: Turn
    verdicts: tuple[Verdict, ...]


def turns_of(pairs: Sequence[tuple[Fault, DatabaseKind]], runs: int) -> list[Turn]:
    """All runs of these faults, cut into turns.

    The first runs of every fault come first, so that what is interrupted tells of
    all of them; among these, those together that need the same stage.
    """
    turns = [
        Turn(fault=fault.name, kind=kind, numbers=range(start, min(start + RUNS_PER_TURN, runs)))
        for fault, kind in sorted(pairs, key=lambda pair: (pair[1], str(pair[0].needs)))
        for start in range(0, runs, RUNS_PER_TURN)
    ]
    return sorted(turns, key=lambda turn: turn.numbers.start)


def play(turns: Sequence[Turn], *, players: int, seed: int) -> Generator[Played]:
    """What each turn came to, as they end; all players are gone at the end.

    Raises:
        RuntimeError: A player broke down.
    """
    # Not forked: a thread or a connection of this process must not be doubled.
    context = multiprocessing.get_context("spawn")
    waiting: Queue[Turn | None] = context.Queue()
    played: Queue[Played] = context.Queue()
    for turn in (*turns, *[None] * players):
        waiting.put(turn)
    team = [
        context.Process(target=player, args=(waiting, played, seed), name=f"player-{number}")
        for number in range(min(players, len(turns)))
    ]
    for each in team:
        each.start()
    try:
        for _ in turns:
            yield _next(played, team)
    except BaseException:
        for each in team:
            each.terminate()
        # Nobody will take what is left, and Python would wait for that at its exit.
        waiting.cancel_join_thread()
        raise
    finally:
        # They take down their stages.
        for each in team:
            each.join()


def _next(played: Queue[Played], team: Sequence[BaseProcess]) -> Played:
    while True:
        with suppress(Empty):
            return played.get(timeout=SECONDS_BETWEEN_LOOKS)
        if broken := [each.name for each in team if each.exitcode]:
            raise RuntimeError(f"{', '.join(broken)} broke down")


def player(waiting: Queue[Turn | None], played: Queue[Played], seed: int) -> None:
    """Play turns until there is none left."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), ExitStack() as services, ExitStack() as stack:
        keeper = StageKeeper(Servers(services))
        stack.callback(keeper.close)
        fault_free = FaultFree()
        while (turn := waiting.get()) is not None:
            verdicts = [
                play_on(keeper, fault_free, turn, seed=seed, number=number)
                for number in turn.numbers
            ]
            played.put(Played(turn=turn, verdicts=tuple(verdicts)))


def play_on(
    keeper: StageKeeper, fault_free: FaultFree, turn: Turn, *, seed: int, number: int
) -> Verdict:
    """One run; what went wrong is printed as it does."""
    fault = FAULTS[turn.fault]
    stage = keeper.stage(fault.needs, turn.kind)
    verdict = play_once(fault, stage, fault_free, seed=seed, number=number)
    where = f"  run {number} of {fault.name} on {turn.kind}, {stage.folder}"
    for problem in verdict.problems:
        print(f"{where}: {problem}", flush=True)
    if verdict.excuse is not None:
        print(f"{where}: excused: {verdict.excuse}", flush=True)
    if verdict.problems:
        # The next run must not meet what this one left behind.
        keeper.close()
    return verdict
