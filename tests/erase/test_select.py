"""Selecting neurons without processes: one rank is the same code."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from sani_dist.config import EraseSettings
from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.erase.select import _random_ids, _top_ids
from sani_dist.erase.structure import last_units


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


@given(scores=st.lists(st.integers(0, 3), min_size=1, max_size=30), share=st.floats(0, 1))
def test_the_highest_scores_are_taken_and_ties_go_to_the_lowest_id(scores: list[int], share: float) -> None:
    count = max(1, int(share * len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]
    assert _top_ids(torch.tensor(scores, dtype=torch.float64), count) == tuple(sorted(expected))
