"""Selecting neurons without processes: one rank is the same code."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from sani_dist.config import EraseSettings
from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.erase.select import _highest, _random_ids, _shares
from sani_dist.erase.structure import Units, last_units


def test_random_neurons_differ_by_seed_and_layer_and_by_nothing_else(llama_folder: Path) -> None:
    model = build_empty(read_model_config(llama_folder), torch.float32)
    first, last = last_units(model, 2, "mlp")
    one = EraseSettings(seed=1, fraction=0.5)
    chosen = _random_ids(last, one)
    assert chosen == tuple(sorted(set(chosen)))
    assert len(chosen) == round(0.5 * 41)
    assert max(chosen) < 41
    assert _random_ids(last, one) == chosen
    assert _random_ids(first, one) != chosen
    assert _random_ids(last, EraseSettings(seed=2, fraction=0.5)) != chosen
    assert _random_ids(last, EraseSettings(fraction=1.0)) == tuple(range(41))
    assert len(_random_ids(last, EraseSettings(fraction=1e-9))) == 1


@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=9), share=st.floats(0, 1))
def test_the_highest_scores_are_taken_and_ties_go_to_the_lowest_id(scores: list[int], share: float) -> None:
    count = max(1, int(share * len(scores)))
    expected = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))[:count]
    assert _highest(torch.tensor(scores, dtype=torch.float64), count) == tuple(sorted(expected))


def test_a_layer_through_which_more_memory_flows_has_higher_scores() -> None:
    """Shares are of all layers together: within one layer alone, the flows of these two would be the same."""
    groups = [Units(layer, "mlp", 2, (), torch.nn.Identity()) for layer in (0, 1)]
    flows = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])]
    assert [part.tolist() for part in _shares(flows, groups)] == [[0.125, 0.125], [0.375, 0.375]]
