"""Who joins the batch next: within the budget, and nobody waits for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.cache.budget import SPARE_COLUMNS, CacheBudget, CacheExtent, Extent, spare_columns
from engine.decode.admission import Admission, InFlight, Reservation

EXTENTS = st.builds(
    Extent,
    st.integers(min_value=1, max_value=500),
    st.sampled_from([0, 3, 200]),
)


def reservations(*tokens: int) -> list[Reservation]:
    return [Reservation(extent=Extent(each)) for each in tokens]


def admission(budget: int | None = None, *, patience: int = 8) -> Admission:
    return Admission(budget=CacheBudget(bytes=budget, token_bytes=1), patience=patience)


def test_the_longest_go_first() -> None:
    assert admission().choose(reservations(5, 9, 7), InFlight(), most_rows=2) == [1, 2]


def test_a_short_prompt_takes_the_room_that_a_long_one_cannot() -> None:
    # given two rows of 100, and room for a third of that width
    in_flight = InFlight(rows=2, widest=Extent(100))
    rules = admission(3 * (100 + spare_columns(100)))
    # then a wider one would make all three wider
    assert rules.choose(reservations(150, 90), in_flight, most_rows=9) == [1]


def test_whoever_was_passed_over_too_often_is_waited_for() -> None:
    in_flight = InFlight(rows=2, widest=Extent(100))
    rules = admission(3 * (100 + spare_columns(100)), patience=2)
    waiting = reservations(150, 90, 90)
    waiting[0].passed_over = 2
    assert rules.choose(waiting, in_flight, most_rows=9) == []
    # and comes in as soon as it fits
    assert rules.choose(waiting, InFlight(rows=1, widest=Extent(100)), most_rows=9) == [0]


def test_one_that_fits_nowhere_runs_when_it_is_alone() -> None:
    rules = admission(10)
    assert rules.choose(reservations(50), InFlight(), most_rows=3) == [0]
    assert rules.choose(reservations(50), InFlight(rows=1, widest=Extent(1)), most_rows=3) == []


@given(
    extents=st.lists(EXTENTS, min_size=1, max_size=60),
    lifetimes=st.lists(st.integers(min_value=1, max_value=9), min_size=60, max_size=60),
    rows=st.integers(min_value=1, max_value=8),
    budget=st.none() | st.integers(min_value=1, max_value=4000),
    patience=st.integers(min_value=0, max_value=10),
    look_ahead=st.integers(min_value=1, max_value=20),
)
def test_all_come_in_within_the_budget_and_none_waits_for_ever(
    extents: list[Extent],
    lifetimes: list[int],
    rows: int,
    budget: int | None,
    patience: int,
    look_ahead: int,
) -> None:
    cache = CacheBudget(bytes=budget, token_bytes=2, source_token_bytes=1)
    rules = Admission(budget=cache, patience=patience)
    feed = [Reservation(extent=extent) for extent in extents]
    waiting: list[Reservation] = []
    alive: list[tuple[Reservation, int]] = []
    steps = 0
    while feed or waiting or alive:
        steps += 1
        alive = [(reservation, left - 1) for reservation, left in alive if left > 1]
        while feed and len(waiting) < look_ahead:
            waiting.append(feed.pop(0))
        in_flight = InFlight()
        for reservation, _left in alive:
            in_flight = in_flight.joined_by(reservation)
        chosen = rules.choose(waiting, in_flight, most_rows=rows)
        assert waiting == [] or chosen or alive
        for place in chosen:
            in_flight = in_flight.joined_by(waiting[place])
            alive.append((waiting[place], lifetimes[len(feed)]))
        waiting = [reservation for place, reservation in enumerate(waiting) if place not in chosen]
        assert in_flight.rows <= rows
        assert in_flight.rows <= 1 or cache.fits(in_flight.rows, in_flight.widest)
        assert all(reservation.passed_over <= patience + rows for reservation in waiting)
    assert steps <= 10 * len(extents) + 10


@given(
    rows=st.integers(min_value=1, max_value=20),
    widest=EXTENTS,
    most_rows=st.integers(min_value=20, max_value=64),
    budget=st.none() | st.integers(min_value=1, max_value=40_000),
    held=st.integers(min_value=0, max_value=100),
)
def test_a_cache_that_fits_is_made_within_the_budget(
    rows: int, widest: Extent, most_rows: int, budget: int | None, held: int
) -> None:
    cache = CacheBudget(bytes=budget, token_bytes=3, source_token_bytes=2)
    extent = cache.extent_for(rows, widest, most_rows=most_rows, held_bytes=held)
    assert rows <= extent.rows <= most_rows
    assert extent.columns >= widest.tokens
    assert extent.source_columns >= widest.source_tokens
    if budget is not None and cache.fits(rows, widest, held):
        assert cache.cache_bytes(extent) + held <= budget
    if budget is None and rows > 1:
        # then the cache is moved once in so many steps, and not in each
        assert extent.columns >= widest.tokens + SPARE_COLUMNS


def test_bytes_are_counted_for_both_caches() -> None:
    cache = CacheBudget(bytes=None, token_bytes=10, source_token_bytes=3)
    assert cache.cache_bytes(CacheExtent(rows=4, columns=5, source_columns=7)) == 4 * (50 + 21)
