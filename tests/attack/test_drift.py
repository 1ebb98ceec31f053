"""Measures of how far hidden states have moved, on states that were moved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sani_dist.attack.drift import cka, principal


def states(tokens: int = 200, dimensions: int = 12, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.standard_normal((tokens, dimensions)) * np.linspace(5, 1, dimensions) + 3


def test_rotation_scale_and_shift_are_no_drift_for_cka() -> None:
    x = states()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))
    assert cka(x, x) == pytest.approx(1)
    assert cka(x, 4 * x @ rotation + 7) == pytest.approx(1)


def test_unrelated_states_have_nothing_in_common_even_with_fewer_tokens_than_dimensions() -> None:
    """The biased estimate would be near 1 there."""
    assert abs(cka(states(40, 300), states(40, 300, seed=1))) < 0.1
    x = states()
    mixed = [cka(x, x + noise * states(seed=2)) for noise in (0.1, 1, 10)]
    assert mixed == sorted(mixed, reverse=True)
    assert mixed[0] > 0.95
    assert mixed[2] < 0.2


def test_the_first_direction_and_the_shift_along_it() -> None:
    x = states()
    similarity, shift = principal(x, x)
    assert (similarity, shift) == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    centred = x - x.mean(axis=0)
    first = np.linalg.svd(centred)[2][0]
    spread = (centred @ first).std()
    similarity, shift = principal(x, x + 2 * spread * first)
    assert (similarity, shift) == (pytest.approx(1), pytest.approx(2, rel=1e-6))
    across = np.linalg.svd(centred)[2][1]
    assert principal(x, x + 9 * across)[1] == pytest.approx(0, abs=1e-9)
    assert principal(x, x[:, ::-1])[0] < 0.2
