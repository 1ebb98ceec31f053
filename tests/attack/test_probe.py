"""A reader, on states that hold a value where the last layer would, elsewhere, not at all, or hold its kind alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sani_dist.attack.probe import Known, preferred, read, wrong_values
from sani_dist.attack.probe import _cross_entropy as cross_entropy

KNOWN, ASKED, SIZE = 90, 60, 16


def read_back(states: np.ndarray, places: np.ndarray, known: int = KNOWN) -> float:
    """Share of comparisons won by a reader of the spans after the first `known`; all values are different, four of each document."""
    count = len(states) - known
    learnt_from = Known(states[:known], places[:known], ~np.eye(known, dtype=bool), np.arange(known) // 4)
    pairs = preferred(read(learnt_from, states[known:], places[known:]), ~np.eye(count, dtype=bool))
    assert (pairs[:, 1] == count - 1).all()
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


def made(seed: int, known: int = KNOWN, size: int = SIZE) -> tuple[np.random.Generator, np.ndarray]:
    draw = np.random.default_rng(seed)
    return draw, draw.standard_normal((known + ASKED, size)) + 5


def test_values_that_no_reader_was_trained_on_are_read_where_they_are_held() -> None:
    def elsewhere(noise: float) -> float:
        draw, places = made(seed=0)
        turn = np.linalg.qr(draw.standard_normal((SIZE, SIZE)))[0]
        return read_back(places @ turn + noise * draw.standard_normal(places.shape), places)

    clear, blurred, hidden = (elsewhere(noise) for noise in (0.1, 1, 1e4))
    assert clear > 0.95
    assert clear > blurred > 0.6
    assert hidden == pytest.approx(0.5, abs=0.1)


def test_a_reader_begins_as_the_lens() -> None:
    """With far too few spans to learn from, of 300 dimensions."""
    draw, places = made(seed=1, known=8, size=300)
    assert read_back(places + draw.standard_normal(places.shape) + 9, places, known=8) > 0.95


def test_more_dimensions_than_spans_are_no_way_to_read_noise() -> None:
    draw, places = made(seed=3, known=40, size=300)
    assert read_back(draw.standard_normal(places.shape), places, known=40) == pytest.approx(0.5, abs=0.1)


def test_nothing_to_tell_apart_is_nothing_to_learn() -> None:
    """Every known value is the only one of its kind: what is left is the lens."""
    draw, places = made(seed=4)
    states = places + 0.1 * draw.standard_normal(places.shape)
    known = Known(states[:KNOWN], places[:KNOWN], np.zeros((KNOWN, KNOWN), dtype=bool), np.arange(KNOWN))
    wins, count = preferred(read(known, states[KNOWN:], places[KNOWN:]), ~np.eye(ASKED, dtype=bool)).T
    assert wins.sum() / count.sum() > 0.95


def test_the_slope_is_that_of_autograd() -> None:
    draw = np.random.default_rng(5)
    scores, wrong = 4 * draw.standard_normal((7, 7)), draw.random((7, 7)) < 0.5
    np.fill_diagonal(wrong, False)
    wrong[3] = False
    value, slope = cross_entropy(torch.from_numpy(scores), torch.from_numpy(wrong))
    z = torch.tensor(scores, requires_grad=True)
    kept = z.masked_fill(~torch.tensor(wrong | np.eye(7, dtype=bool)), -torch.inf)
    loss = (kept.logsumexp(1) - z.diagonal()).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    assert value == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(slope, z.grad, atol=1e-14)


def test_knowing_what_is_frequent_is_guessing() -> None:
    """A reader that says the same of every span, where half of the spans have one value: each pair counts both ways."""
    value = [0, 0, 0, 1, 2, 3]
    scores = np.tile(np.equal(value, 0).astype(float), (6, 1))
    wins, count = preferred(scores, wrong_values(["a"] * 6, [(v,) for v in value])).T
    assert count.tolist() == [3, 3, 3, 5, 5, 5]
    assert wins.sum() / count.sum() == 0.5


def test_only_values_of_the_same_kind_are_compared() -> None:
    """A reader who finds the kind and nothing else."""
    kinds = ["a", "a", "b", "b"]
    scores = np.equal.outer(kinds, kinds).astype(float)
    wins, count = preferred(scores, wrong_values(kinds, [(0,), (1,), (2,), (3,)])).T
    assert count.tolist() == [1, 1, 1, 1]
    assert wins.tolist() == [0.5] * 4
