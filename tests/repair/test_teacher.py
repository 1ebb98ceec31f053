"""Distributions that must not tell the token that stands there."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sani_dist.kernels import token_scores
from sani_dist.repair.teacher import without


@given(
    rows=st.integers(1, 5), top=st.integers(1, 6), scale=st.sampled_from([0.1, 2.0, 30.0]), seed=st.integers(0, 10**6)
)
@settings(max_examples=80, deadline=None)
def test_the_others_share_what_the_token_had(rows: int, top: int, scale: float, seed: int) -> None:
    """Named or not; at a scale of 30 the model is often sure of it."""
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, 4, generator=draw) * scale, torch.randn(11, 4, generator=draw)
    logits = (hidden.double() @ weight.double().t()).log_softmax(dim=1)
    targets = torch.where(
        torch.rand(rows, generator=draw) < 0.5, logits.argmax(dim=1), torch.randint(11, (rows,), generator=draw)
    )
    found = token_scores(hidden, weight, targets, torch.arange(rows), top_k=top + 1)
    assert found.top_ids is not None
    assert found.top_logprob is not None
    ids, logprob = without(targets, found.logprob, found.top_ids, found.top_logprob)
    expected = logits.scatter(1, targets.unsqueeze(1), -torch.inf).log_softmax(dim=1)
    assert ids.shape == logprob.shape == (rows, top)
    assert not (ids == targets.unsqueeze(1)).any()
    torch.testing.assert_close(logprob.double(), expected.gather(1, ids), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(expected.gather(1, ids), expected.topk(top, dim=1).values, rtol=1e-5, atol=1e-4)


def test_a_token_of_probability_one_leaves_a_distribution() -> None:
    """What fp32 cannot tell from certainty: the others are as they are to one another."""
    logprob = torch.tensor([[0.0, -90.0, -91.0]])
    ids, others = without(torch.tensor([5]), torch.tensor([0.0]), torch.tensor([[5, 2, 7]]), logprob)
    assert ids.tolist() == [[2, 7]]
    torch.testing.assert_close(others.exp(), torch.tensor([[1.0, torch.e**-1]]) / (1 + torch.e**-1))
