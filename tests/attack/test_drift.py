"""Measures of how far hidden states have moved, on states that were moved by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sani_dist.attack.drift import cka, principal
from sani_dist.attack.fisher import squares


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
    assert principal(x, x) == (pytest.approx(1), pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    centred = x - x.mean(axis=0)
    first, second, third, *_ = np.linalg.svd(centred)[2]
    spread = (centred @ first).std()
    assert principal(x, x + 2 * spread * first) == (pytest.approx(1), pytest.approx(2), pytest.approx(2))
    assert principal(x, x + spread * (3 * first + 4 * second))[1:] == (pytest.approx(3), pytest.approx(5))
    assert principal(x, x + 9 * third)[1:] == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    assert principal(x, x[:, ::-1])[0] < 0.2


def test_squared_gradients_of_a_weight_without_the_gradient() -> None:
    """Of two documents in one row, each a gradient of its own, against autograd; the last two tokens are padding."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3)
    inputs, document = torch.randn(1, 9, 5), torch.tensor([4, 4, 4, 4, 7, 7, 7, -1, -1])
    output = layer(inputs)
    losses = (output**3).sum(dim=(0, 2))
    (gradient,) = torch.autograd.grad(losses.sum(), output, retain_graph=True)
    expected = 0.0
    for number in (4, 7):
        (of_weight,) = torch.autograd.grad(losses[document == number].sum(), layer.weight, retain_graph=True)
        expected += float((of_weight**2).sum())
    same = (document[:, None] == document) & (document != -1)
    assert float(squares(inputs, gradient, same)) == pytest.approx(expected, rel=1e-5)
