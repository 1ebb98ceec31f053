"""Area under the curve, its error and hits at 1 % false alarms, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from sani_dist.audit.measurement import clopper_pearson
from sani_dist.audit.roc import auc, auc_interval, hits_at_false_alarms


@given(m=st.integers(2, 40), n=st.integers(2, 40), levels=st.integers(2, 50), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_area_is_the_share_of_pairs_in_order_and_the_error_that_of_delong(
    m: int, n: int, levels: int, seed: int
) -> None:
    """DeLong, DeLong and Clarke-Pearson (Biometrics 44, 1988), equations 1 to 4, by their double sums; ties count half."""
    draw = np.random.default_rng(seed)
    members, controls = draw.integers(0, levels, m) + 1.0, draw.integers(0, levels, n) + 0.0
    area, error = auc(members, controls, np.arange(m), m + np.arange(n))
    order = (members[:, None] > controls) + 0.5 * (members[:, None] == controls)
    assert area == pytest.approx(order.mean())
    assert area == pytest.approx(mannwhitneyu(members, controls).statistic / (m * n))
    variance = order.mean(axis=1).var(ddof=1) / m + order.mean(axis=0).var(ddof=1) / n
    assert error == pytest.approx(np.sqrt(variance), abs=1e-12)


def test_the_interval_holds_the_truth_in_about_95_of_100_also_with_several_spans_of_a_document() -> None:
    """Scores of a document share a part; the area is that of two normals one apart: Phi(1 / sqrt(2 * 1.5))."""
    draw = np.random.default_rng(0)
    truth, held, naive = 0.7181, 0, 0
    for _ in range(300):
        scores = [draw.normal(shift, 1, 60)[:, None] + draw.normal(0, np.sqrt(0.5), (60, 4)) for shift in (1.0, 0.0)]
        members, controls = (s.reshape(-1) for s in scores)
        documents = np.repeat(np.arange(60), 4)
        area, error = auc(members, controls, documents, documents)
        low, high = auc_interval(area, error, 60)
        held += low <= truth <= high
        low, high = auc_interval(area, auc(members, controls, np.arange(240), np.arange(240))[1], 240)
        naive += low <= truth <= high
    assert 270 <= held <= 297
    assert naive < held - 15  # as if the spans of a document were independent


def test_where_all_members_lie_above_all_controls() -> None:
    members, controls = np.arange(20) + 100.0, np.arange(30) + 0.0
    area, error = auc(members, controls, np.arange(20), np.arange(30))
    assert area == 1
    assert auc_interval(area, error, 20) == clopper_pearson(20, 20)


def test_hits_at_one_percent_false_alarms() -> None:
    controls = np.arange(200) + 0.0  # two of them, 198 and 199, may raise an alarm
    assert hits_at_false_alarms(np.array([197.0, 197.5, 198.0, 250.0]), controls) == 3
    assert hits_at_false_alarms(np.array([0.0, 1.0]), np.ones(100)) == 0
