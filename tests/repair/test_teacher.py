"""What other models predict: kept, and without the token that stands there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sani_dist.kernels import token_scores
from sani_dist.repair.row_cache import RowCache
from sani_dist.repair.teacher import as_kept, without


@given(
    rows=st.integers(1, 5), top=st.integers(1, 6), scale=st.sampled_from([0.1, 2.0, 30.0]), seed=st.integers(0, 10**6)
)
@settings(max_examples=80, deadline=None)
def test_the_others_share_what_the_token_had(rows: int, top: int, scale: float, seed: int) -> None:
    """Named or not; at a scale of 30 the model is often sure of it."""
    draw = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, 4, generator=draw) * scale, torch.randn(11, 4, generator=draw)
    raw = hidden.double() @ weight.double().t()
    logits = raw.log_softmax(dim=1)
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
    # What float32 knows of 1 - p is as good as its logits are. The likeliest other bounds it, so it is never off by more than log 11.
    known = 4 * torch.finfo(torch.float32).eps * raw.abs().amax(dim=1, keepdim=True)
    off = known / -torch.expm1(logits.gather(1, targets.unsqueeze(1)).clamp(max=-1e-30))
    assert ((logprob.double() - expected.gather(1, ids)).abs() <= 1e-4 + off.clamp(max=math.log(11))).all()
    torch.testing.assert_close(expected.gather(1, ids), expected.topk(top, dim=1).values, rtol=1e-5, atol=1e-4)


def test_a_token_of_probability_one_leaves_a_distribution() -> None:
    """What fp32 cannot tell from certainty: the others are as they are to one another."""
    logprob = torch.tensor([[0.0, -90.0, -91.0]])
    ids, others = without(torch.tensor([5]), torch.tensor([0.0]), torch.tensor([[5, 2, 7]]), logprob)
    assert ids.tolist() == [[2, 7]]
    torch.testing.assert_close(others.exp(), torch.tensor([[1.0, torch.e**-1]]) / (1 + torch.e**-1))


def test_a_row_without_such_a_token_has_nothing_kept(tmp_path: Path) -> None:
    """As general text, in which no sensitive value stands: between rows that have some."""
    (tmp_path / "kept").mkdir()
    record = as_kept(torch.tensor([[3, 1]]), torch.tensor([[-0.5, -1.5]]))
    (tmp_path / "kept" / "rank-00000.bin").write_bytes(record.numpy().tobytes() * 2)
    (tmp_path / "kept" / "kept.json").write_text(json.dumps({"files": ["rank-00000.bin"]}))
    text: Any = object()
    kept = RowCache(tmp_path / "kept", [(text, row) for row in range(3)], [16, 0, 16])
    assert kept.of((text, 1), torch.int32).view(2, -1, 2).shape == (2, 0, 2)
    for row in (0, 2):
        assert torch.equal(kept.of((text, row), torch.int32).view(2, -1, 2), record)
