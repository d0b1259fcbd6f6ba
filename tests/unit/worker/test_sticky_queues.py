"""A worker stays with one model's queue, but not for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from worker.queue.sticky_queues import StickyCycle


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def cycle(*queues: str, quantum_seconds: float = 60.0) -> tuple[StickyCycle, Clock]:
    clock = Clock()
    made = StickyCycle(quantum_seconds, clock)
    made.update(queues)
    return made, clock


def test_queues_are_read_in_the_order_they_were_given() -> None:
    queues, _ = cycle("a", "b", "c")
    assert queues.consume(3) == ["a", "b", "c"]


def test_the_queue_last_used_is_read_first() -> None:
    queues, _ = cycle("a", "b", "c")
    queues.rotate("b")
    assert queues.consume(3) == ["b", "a", "c"]


def test_a_queue_stays_in_front_until_its_time_is_over() -> None:
    queues, clock = cycle("a", "b")
    queues.rotate("b")
    clock.now += 59.9
    # Using it again must not begin its time anew.
    queues.rotate("b")
    assert queues.consume(2) == ["b", "a"]
    clock.now += 0.1
    assert queues.consume(2) == ["a", "b"]


def test_a_queue_whose_time_is_over_lets_all_others_go_first() -> None:
    queues, clock = cycle("a", "b", "c")
    queues.rotate("b")
    clock.now += 60
    assert queues.consume(3) == ["a", "c", "b"]


def test_a_queue_alone_with_messages_gets_a_new_time() -> None:
    # given a queue whose time is over while the others are empty
    queues, clock = cycle("a", "b")
    queues.rotate("b")
    clock.now += 60
    queues.consume(2)
    # when the next message comes from it again
    queues.rotate("b")
    # then it is in front for another whole quantum
    clock.now += 59
    assert queues.consume(2) == ["b", "a"]


def test_a_queue_that_takes_over_is_the_one_to_stay_with() -> None:
    queues, clock = cycle("a", "b")
    queues.rotate("a")
    clock.now += 30
    queues.rotate("b")
    clock.now += 59
    assert queues.consume(2) == ["b", "a"]


def test_an_update_keeps_the_order_and_appends_what_is_new() -> None:
    queues, _ = cycle("a", "b", "c")
    queues.rotate("c")
    queues.update(["a", "b", "d", "c"])
    assert queues.consume(4) == ["c", "a", "b", "d"]


def test_an_update_drops_what_is_gone() -> None:
    queues, clock = cycle("a", "b", "c")
    queues.rotate("b")
    queues.update(["a", "c"])
    clock.now += 60
    assert queues.consume(2) == ["a", "c"]


def test_a_queue_that_went_and_came_back_can_be_stayed_with_again() -> None:
    queues, _ = cycle("a", "b")
    queues.rotate("b")
    queues.update(["a"])
    queues.update(["a", "b"])
    queues.rotate("b")
    assert queues.consume(2) == ["b", "a"]


def test_a_message_of_an_unknown_queue_changes_nothing() -> None:
    queues, _ = cycle("a", "b")
    queues.rotate("z")
    assert queues.consume(2) == ["a", "b"]


def test_no_more_queues_are_given_than_asked_for() -> None:
    queues, _ = cycle("a", "b", "c")
    assert queues.consume(2) == ["a", "b"]


NAMES = st.sampled_from("abcdef")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rotate"), NAMES),
        st.tuples(st.just("update"), st.sets(NAMES).map(sorted)),
        st.tuples(st.just("wait"), st.floats(0, 100)),
        st.tuples(st.just("consume"), st.integers(0, 6)),
    )
)


@given(steps=STEPS)
def test_whatever_happens_every_queue_is_read_exactly_once(steps: list[tuple[str, Any]]) -> None:
    queues, clock = cycle("a", "b", "c")
    present = ["a", "b", "c"]
    actions: dict[str, Callable[[Any], object]] = {
        "rotate": queues.rotate,
        "update": queues.update,
        "consume": queues.consume,
        "wait": lambda seconds: setattr(clock, "now", clock.now + seconds),
    }
    for action, argument in steps:
        actions[action](argument)
        if action == "update":
            present = argument
        assert sorted(queues.consume(len(present))) == sorted(present)
