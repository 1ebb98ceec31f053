"""The intervals, against known values and by coverage."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from sani_dist.audit.measurement import bootstrap_by_document, clopper_pearson, difference


@given(count=st.integers(1, 400), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_clopper_pearson_is_what_scipy_gives(count: int, share: float) -> None:
    hits = round(share * count)
    known = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="exact")
    assert clopper_pearson(hits, count) == pytest.approx((known.low, known.high), abs=1e-9)


def test_clopper_pearson_known_values() -> None:
    assert clopper_pearson(0, 10) == pytest.approx((0, 0.30850), abs=1e-5)  # 1 - 0.025 ** (1 / 10)
    assert clopper_pearson(10, 10) == pytest.approx((0.69150, 1), abs=1e-5)
    low, high = clopper_pearson(4, 20)
    assert binom.sf(3, 20, low) == pytest.approx(0.025)
    assert binom.cdf(4, 20, high) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)
def test_difference_is_that_of_the_published_examples(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe, Stat. Med. 17, 873-890 (1998), table II, method 10."""
    value, *interval = difference(first, second)
    assert value == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert interval == pytest.approx([low, high], abs=5e-5)


def test_bootstrap_holds_the_truth_in_about_95_of_100() -> None:
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = draw.exponential(2.0, 80)
        low, high = bootstrap_by_document(values, np.ones(80), np.arange(80))
        held += low <= 2.0 <= high
    assert (
        175 <= held <= 199
    )  # 0.95 +- 4 standard errors, and the percentile interval is a little short for skewed values


def test_bootstrap_resamples_documents_not_spans() -> None:
    """Spans that hang together carry less: ten copies of each value must not shrink the interval."""
    draw = np.random.default_rng(2)
    values = draw.normal(size=40)
    alone = bootstrap_by_document(values, np.ones(40), np.arange(40))
    copied = bootstrap_by_document(np.repeat(values, 10), np.ones(400), np.repeat(np.arange(40), 10))
    independent = bootstrap_by_document(np.repeat(values, 10), np.ones(400), np.arange(400))
    assert copied == pytest.approx(alone)
    assert independent[1] - independent[0] < 0.5 * (alone[1] - alone[0])


def test_bootstrap_weighs_documents_by_their_size() -> None:
    low, high = bootstrap_by_document(np.array([2.0, 2.0, 2.0]), np.ones(3), np.array([5, 5, 9]))
    assert (low, high) == (2.0, 2.0)
    assert bootstrap_by_document(np.array([3.0]), np.array([2.0]), np.array([0])) == (1.5, 1.5)
