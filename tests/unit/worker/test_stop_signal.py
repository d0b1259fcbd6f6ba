"""A child hears of its parent's wish to stop, and of its parent's death."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

from worker.shards.stop_signal import StopSignal

SECONDS_TO_WAIT = 20

# A parent that is killed while its child watches the signal.
ORPHAN = """
import os, signal, sys, time
from worker.shards.stop_signal import StopSignal
stop = StopSignal()
if os.fork() == 0:
    assert not stop.is_set()
    print("watching", flush=True)
    deadline = time.monotonic() + 20
    while not stop.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
    print("stopped" if stop.is_set() else "deaf", flush=True)
    os._exit(0)
time.sleep(60)
"""


def test_a_new_signal_is_not_set() -> None:
    assert StopSignal().is_set() is False


def test_a_signal_stays_set() -> None:
    stop = StopSignal()
    stop.set()
    stop.set()
    assert stop.is_set() is True


def test_a_child_hears_its_parent() -> None:
    # given a child that was forked before the signal
    stop = StopSignal()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        os.write(writing, b"0" if not stop.is_set() else b"1")
        for _ in range(SECONDS_TO_WAIT * 100):
            if stop.is_set():
                os.write(writing, b"1")
                os._exit(0)
            select.select([], [], [], 0.01)
        os._exit(1)
    # when it has looked once and the parent sets the signal
    try:
        before = os.read(reading, 1)
        stop.set()
        _, status = os.waitpid(child, 0)
        after = os.read(reading, 1) if status == 0 else b"none"
    finally:
        os.close(reading)
        os.close(writing)
    # then it sees it set where it was not before
    assert (before, after) == (b"0", b"1")


def test_a_parent_hears_its_child() -> None:
    stop = StopSignal()
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        stop.set()
        os._exit(0)
    os.waitpid(child, 0)
    assert stop.is_set() is True


def test_a_child_of_a_dead_parent_stops() -> None:
    # given a child that watches
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "watching\n"
        # when its parent is killed without a word
        it.send_signal(signal.SIGKILL)
        # then it stops by itself
        assert it.stdout.readline() == "stopped\n"
