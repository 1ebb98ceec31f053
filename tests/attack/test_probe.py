"""A linear reader, on states that hold a value, hold nothing of it, or hold its kind alone."""

from __future__ import annotations

import numpy as np
import pytest

from sani_dist.attack.probe import preferred, read

KNOWN, ASKED, HIDDEN, SIZE = 90, 60, 24, 10


def read_back(noise: float, seed: int = 0) -> float:
    """Share of comparisons won by a reader of states that are a rotation of the values' places and noise; all values are different."""
    draw = np.random.default_rng(seed)
    places = draw.standard_normal((KNOWN + ASKED, SIZE)) + 5
    states = places @ draw.standard_normal((SIZE, HIDDEN)) + noise * draw.standard_normal((KNOWN + ASKED, HIDDEN))
    found = read(states[:KNOWN], places[:KNOWN], states[KNOWN:])
    pairs = preferred(found, places[KNOWN:] - places[:KNOWN].mean(axis=0), ["a"] * ASKED, [(i,) for i in range(ASKED)])
    assert (pairs[:, 1] == ASKED - 1).all()
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


def test_values_that_no_reader_was_trained_on_are_read_where_they_are_held() -> None:
    clear, blurred, hidden = (read_back(noise) for noise in (0.1, 5, 1e4))
    assert clear > 0.99
    assert clear > blurred > 0.6
    assert hidden == pytest.approx(0.5, abs=0.08)


def test_more_dimensions_than_spans_are_no_way_to_read_noise() -> None:
    draw = np.random.default_rng(3)
    states, places = draw.standard_normal((80, 300)), draw.standard_normal((80, SIZE))
    found = read(states[:40], places[:40], states[40:])
    wins, count = preferred(found, places[40:], ["a"] * 40, [(i,) for i in range(40)]).T
    assert wins.sum() / count.sum() == pytest.approx(0.5, abs=0.1)


def test_knowing_what_is_frequent_is_guessing() -> None:
    """A reader that says the same of every span, where half of the spans have one value: each pair counts both ways."""
    places = np.eye(6)[[0, 0, 0, 1, 2, 3]]
    wins, count = preferred(np.tile(np.eye(6)[0], (6, 1)), places, ["a"] * 6, [(0,), (0,), (0,), (1,), (2,), (3,)]).T
    assert count.tolist() == [3, 3, 3, 5, 5, 5]
    assert wins.sum() / count.sum() == 0.5


def test_only_values_of_the_same_kind_are_compared() -> None:
    """A reader who finds the kind and nothing else."""
    places = np.eye(4)
    found = places[[0, 0, 2, 2]] + places[[1, 1, 3, 3]]
    wins, count = preferred(found, places, ["a", "a", "b", "b"], [(0,), (1,), (2,), (3,)]).T
    assert count.tolist() == [1, 1, 1, 1]
    assert wins.tolist() == [0.5] * 4
