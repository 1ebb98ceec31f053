"""Which points no other beats, and which one is chosen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sani_dist.sweep.front import Outcome, choose, front
from sani_dist.sweep.settings import Limits
from sani_dist.sweep.trials import Figure

COST = "general_test"


def outcome(number: int, *trials: tuple[float, float], half: float = 0.0, **more: Figure) -> Outcome:
    """`trials`: leak and rise of each seed, whose intervals reach `half` further."""
    figures = ({"leak": Figure(leak, leak + half), COST: Figure(rise, rise + half), **more} for leak, rise in trials)
    return Outcome(number, {}, tuple(figures))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-3, 3)), min_size=1, max_size=9))
def test_the_front_is_every_point_that_no_other_beats(places: list[tuple[int, int]]) -> None:
    found = {o.place(COST) for o in front([outcome(i, place) for i, place in enumerate(places)], COST)}
    beaten = {
        place for place in places for other in places
        if other != place and other[0] <= place[0] and other[1] <= place[1]
    }  # fmt: skip
    assert found == set(places) - beaten


def test_the_chosen_point_leaks_least_within_the_limits() -> None:
    points = [outcome(0, (0.3, 0.01)), outcome(1, (0.1, 0.04)), outcome(2, (0.05, 0.2))]
    limits = Limits(max_general_loss=0.05)
    chosen = choose(points, limits, COST)
    assert chosen is not None
    assert chosen.number == 1
    assert choose(points, Limits(max_general_loss=0.0), COST) is None
    assert choose(points, Limits(), COST) == points[2]


def test_of_equals_the_cheaper_is_chosen() -> None:
    chosen = choose([outcome(0, (0.1, 0.04)), outcome(1, (0.1, 0.02))], Limits(), COST)
    assert chosen is not None
    assert chosen.number == 1


def test_a_negligible_difference_of_leak_is_none() -> None:
    cheap, dear = outcome(0, (2e-9, 0.01)), outcome(1, (1e-9, 0.02))
    assert front([cheap, dear], COST) == [cheap]
    assert choose([cheap, dear], Limits(), COST) == cheap


def test_limits_hold_at_the_bad_end_of_the_worst_seed() -> None:
    steady, one_bad = outcome(0, (0.1, 0.03), (0.1, 0.03), half=0.01), outcome(1, (0, 0.0), (0, 0.045), half=0.01)
    assert steady.keeps(Limits(max_general_loss=0.04))
    assert not steady.keeps(Limits(max_general_loss=0.039))
    assert one_bad.bounds_of(COST).high == 0.055  # type: ignore[union-attr]
    assert choose([steady, one_bad], Limits(max_general_loss=0.05), COST) == steady


def test_a_text_that_was_too_small_to_tell_keeps_no_limit() -> None:
    unknown = outcome(0, (0.1, 0.0), heldout=Figure(None, None, "7 documents"))
    assert not unknown.keeps(Limits(max_utility_loss=0.5))
    assert unknown.keeps(Limits(max_general_loss=0.5))


def test_a_point_with_fewer_seeds_is_not_compared() -> None:
    lucky, whole = outcome(0, (0.0, 0.0)), outcome(1, (0.2, 0.1), (0.2, 0.1))
    assert front([lucky, whole], COST) == [whole]
    assert choose([lucky, whole], Limits(), COST) == whole
    assert front([Outcome(0, {}, ())], COST) == []


def test_a_point_without_a_figure_has_no_place() -> None:
    unknown = Outcome(0, {}, ({"leak": Figure(None, None, "no spans"), COST: Figure(0.1, 0.1)},))
    assert unknown.place(COST) is None
    assert front([unknown], COST) == []
    assert choose([unknown], Limits(), COST) is None


def test_seeds_become_mean_and_range() -> None:
    leak = outcome(0, (0.1, 0), (0.3, 0), (0.2, 0), half=0.05).bounds_of("leak")
    assert leak is not None
    assert (round(leak.mean, 9), leak.low, leak.high) == (0.25, 0.15000000000000002, 0.35)
