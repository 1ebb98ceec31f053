"""The paired interval of the change of perplexity."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap

from sani_dist.report.rise import FEWEST_DOCUMENTS, perplexity_rise


def table(loss: np.ndarray, tokens: np.ndarray, split: str = "heldout") -> pd.DataFrame:
    return pd.DataFrame({"split": split, "document": np.arange(len(loss)), "loss": loss, "tokens": tokens})


def test_is_the_ratio_of_the_perplexities() -> None:
    draw = np.random.default_rng(0)
    tokens = draw.integers(10, 90, 30)
    before, after = draw.exponential(2, 30) * tokens, draw.exponential(2, 30) * tokens
    ratio = np.exp(after.sum() / tokens.sum()) / np.exp(before.sum() / tokens.sum())
    measured = perplexity_rise("heldout", table(before, tokens), table(after, tokens))
    assert measured.value == pytest.approx(ratio - 1)
    assert measured.n == 30


def test_interval_is_that_of_a_paired_bootstrap() -> None:
    draw = np.random.default_rng(1)
    tokens = np.full(60, 40)
    before = draw.exponential(2, 60) * tokens
    change = draw.normal(0.03, 0.05, 60)
    known = bootstrap((change,), np.mean, method="percentile", random_state=2).confidence_interval
    measured = perplexity_rise("heldout", table(before, tokens), table(before + change * tokens, tokens))
    assert (measured.low, measured.high) == pytest.approx((np.expm1(known.low), np.expm1(known.high)), abs=0.002)


def test_documents_that_differ_much_do_not_widen_it() -> None:
    draw = np.random.default_rng(3)
    tokens = np.full(40, 40)
    before = draw.exponential(5, 40) * tokens
    measured = perplexity_rise("heldout", table(before, tokens), table(before + np.log(1.1) * tokens, tokens))
    assert (measured.low, measured.value, measured.high) == pytest.approx((0.1, 0.1, 0.1))


def test_audits_of_other_documents_are_not_compared() -> None:
    tokens = np.full(20, 10)
    loss = np.full(20, 7.0)
    before = pd.concat([table(loss, tokens), table(0 * loss, tokens, "general_test")])
    measured = perplexity_rise("heldout", before, table(loss, tokens))
    assert (measured.n, measured.value) == (20, 0)
    fewer = perplexity_rise("heldout", before, table(loss, tokens)[:15])
    assert (fewer.n, fewer.value, fewer.reason) == (15, None, "the two audits are not of the same documents")


def test_few_documents_give_a_reason_instead_of_a_value() -> None:
    few = table(np.ones(FEWEST_DOCUMENTS - 1), np.ones(FEWEST_DOCUMENTS - 1))
    measured = perplexity_rise("heldout", few, few)
    assert (measured.value, measured.high) == (None, None)
    assert measured.reason == "9 documents; an interval needs 10"
