"""Scores of the attacks against formulas written out in float64 from whole logits."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sani_dist.audit.membership import ATTACKS, attack_scores, membership, score_texts, zlib_size
from sani_dist.audit.scores import TokenScores
from sani_dist.kernels import token_scores
from tests import tiny


def test_attacks_from_whole_logits(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Min-K% (arXiv 2310.16789, equation 1) and Min-K%++ (arXiv 2404.02936, equations 2 and 3), K = 20, by numpy."""
    model = tiny.llama(len(tiny_tokenizer)).eval()
    text = "The patient has a cough and is given rest and fluids. The river is quiet in winter."
    ids = tiny_tokenizer(text, return_tensors="pt").input_ids[0]
    with torch.no_grad():
        hidden = model.model(ids[None]).last_hidden_state[0]
    scores = token_scores(hidden[:-1], model.lm_head.weight, ids[1:], torch.arange(len(ids) - 1), moments=True)
    logits = (hidden[:-1].double() @ model.lm_head.weight.double().t()).detach().numpy()
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    at = np.log(p[np.arange(len(p)), ids[1:].numpy()])
    mean = (p * np.log(p)).sum(axis=1)
    std = np.sqrt((p * np.log(p) ** 2).sum(axis=1) - mean**2)
    least = int(0.2 * len(p))

    assert scores.mean_logprob is not None
    assert scores.std_logprob is not None
    reference = at + np.linspace(-1, 2, len(at))
    found = attack_scores(
        scores.logprob.numpy(), zlib_size(text), scores.mean_logprob.numpy(), scores.std_logprob.numpy(), reference
    )
    expected = {
        "loss": at.mean(), "zlib": at.mean() / len(zlib.compress(text.encode())), "mink": np.sort(at)[:least].mean(),
        "minkpp": np.sort((at - mean) / std)[:least].mean(), "reference": -0.5,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-4)
    assert tuple(found) == ATTACKS


def test_without_moments_or_reference_their_attacks_are_absent() -> None:
    assert list(attack_scores(np.array([-1.0]), 9)) == ["loss", "zlib", "mink"]


def test_texts_are_read_where_their_tokens_lie() -> None:
    logprob = np.log(np.array([[0.5, 0.25, 0.1], [0.2, 0.4, 0.8]], dtype=np.float32))
    places = [(7, np.array([0, 1]), np.array([2, 0]), 10), (8, np.array([1]), np.array([2]), 20)]
    table = score_texts(TokenScores(logprob, logprob > 0), None, iter(places))
    assert table["document"].tolist() == [7, 8]
    assert table["loss"].tolist() == pytest.approx([np.log(0.1 * 0.2) / 2, np.log(0.8)])
    assert table["zlib"].tolist() == pytest.approx([np.log(0.1 * 0.2) / 20, np.log(0.8) / 20])
    assert "minkpp" not in table


def population(shift: float, documents: int, first: int, each: int = 4) -> pd.DataFrame:
    draw = np.random.default_rng(first)
    return pd.DataFrame(
        {"document": first + np.repeat(np.arange(documents), each), "loss": draw.normal(shift, 1, documents * each)}
    )


def test_members_stand_out_or_not() -> None:
    controls = population(0, 60, 1000)
    known, unknown, over = (membership("sensitive", population(s, 60, 1), controls) for s in (2.5, 0.0, -2.5))
    for found, flagged in ((known, False), (unknown, False), (over, True)):
        assert [m.metric for m in found] == ["mia_loss_auc", "mia_loss_tpr"]
        assert ("over-unlearning" in str(found[0].reason)) == flagged
    assert known[0].low is not None
    assert known[0].low > 0.9
    assert unknown[0].low is not None
    assert unknown[0].high is not None
    assert unknown[0].low < 0.5 < unknown[0].high
    assert known[1].value is not None
    assert known[1].value > 0.3
    assert unknown[1].value is not None
    assert unknown[1].value < 0.08


def test_too_few_controls_give_no_number() -> None:
    auc, tpr = membership("sensitive", population(3, 60, 1), population(0, 9, 1000))
    assert (auc.value, tpr.value) == (None, None)
    assert auc.reason == "too few controls: 9 documents, 10 are needed"
    assert tpr.reason == "too few controls: 36, 100 are needed"
    auc, _ = membership("sensitive", population(3, 5, 1), population(0, 60, 1000))
    assert auc.reason == "too few members: 5 documents, 10 are needed"
