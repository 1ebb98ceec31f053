"""Copying and plausibility, worked out by hand: what is summed of each document, what is made of the sums, and what a change is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sani_dist.audit import use
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.scores import TokenScores
from sani_dist.report.use import use_changes

# One row of six tokens for each of two documents. Probabilities and ranks (number of likelier tokens) of each as a target.
P = np.array([[0.5, 0.5, 0.25, 0.5, 0.1, 0.1], [0.5, 0.2, 0.5, 0.5, 0.5, 1.0]])
RANK = np.array([[0, 0, 1, 0, 3, 7], [0, 3, 0, 0, 0, 0]], np.int32)
SCORES = TokenScores(np.log(P).astype(np.float32), RANK == 0, RANK)


def spans(*lines: tuple[int, str, int, int]) -> pd.DataFrame:
    """(document and row, kind, first, end)."""
    columns = ["document", "kind", "first", "end"]
    return pd.DataFrame(lines, columns=columns).assign(row=[line[0] for line in lines])


# Two values of document 0, one of document 1.
VALUES = spans((0, "PERSON", 1, 3), (0, "CODE", 4, 6), (1, "PERSON", 1, 2))


def by_name(measured: list[Measurement], kind: str | None = None) -> dict[str, Measurement]:
    return {m.metric: m for m in measured if m.group == ({} if kind is None else {"kind": kind})}


def test_copies_are_counted_and_their_probabilities_averaged() -> None:
    copies = spans((0, "PERSON", 0, 2), (0, "CODE", 2, 4), (1, "PERSON", 2, 4))
    found = by_name(use.measure(use.of_copies("copied", SCORES, copies)))
    assert (found["copied"].value, found["copied"].n) == (pytest.approx(2 / 3), 3)
    assert found["copied_probability"].value == pytest.approx((0.25 + 0.125 + 0.25) / 3)


def test_log_probability_and_rank_are_means_over_tokens() -> None:
    measured = use.measure(use.of_values(SCORES, VALUES))
    found, people = by_name(measured), by_name(measured, "PERSON")
    tokens = [0.5, 0.25, 0.1, 0.1, 0.2]
    assert (found["value_logprob"].value, found["value_logprob"].n) == (pytest.approx(np.log(tokens).mean()), 5)
    assert found["value_rank"].value == pytest.approx(math.prod([1, 2, 4, 8, 4]) ** (1 / 5))
    assert people["value_logprob"].value == pytest.approx(np.log([0.5, 0.25, 0.2]).mean())
    assert people["value_rank"].value == pytest.approx(2.0)
    low, high = found["value_rank"].low, found["value_rank"].high
    assert low is not None
    assert high is not None
    assert low <= 64 ** (1 / 4) <= high  # of document 0 alone
    assert found["copied"].reason == "no value stands earlier in its control document"


def test_forms_are_a_share_of_those_that_were_asked() -> None:
    asked = pd.DataFrame({"document": [0, 0, 1], "kind": ["A", "B", "A"], "written": [True, False, True]})
    measured = use.measure(use.of_forms(asked))
    assert by_name(measured)["value_form"].value == pytest.approx(2 / 3)
    assert by_name(measured, "A")["value_form"].value == 1


def test_where_nothing_was_measured_each_metric_says_why() -> None:
    measured = use.measure(use.EMPTY, use.NOT_MASKED)
    assert [(m.metric, m.value, m.reason) for m in measured] == [(name, None, use.NOT_MASKED) for name in use.METRICS]
    assert by_name(use.measure(use.EMPTY))["value_form"].reason is not None


def sums(metric: str, totals: list[float], counts: list[int]) -> pd.DataFrame:
    lines = {"metric": metric, "kind": "PERSON", "document": range(len(totals)), "total": totals, "count": counts}
    return pd.DataFrame(lines)


def change(before: pd.DataFrame, after: pd.DataFrame) -> Measurement:
    (found,) = use_changes(after, before, "before")
    assert found.group == {"against": "before"}
    return found


def test_a_change_is_that_of_the_same_documents() -> None:
    """Documents that differ by far more than the models do: half of what each copied is left, with no doubt about it."""
    copied = [float(2 * n) for n in range(1, 13)]
    half_and_another = [*(n / 2 for n in copied), 9.0]
    found = change(sums("copied", copied, [30] * 12), sums("copied", half_and_another, [30] * 13))
    assert (found.value, found.low, found.high, found.n) == (-0.5, -0.5, -0.5, 12)


def test_less_likely_is_a_negative_change_of_a_log_probability() -> None:
    before = sums("value_logprob", [-10.0 - n for n in range(12)], [5] * 12)
    after = before.assign(total=1.2 * before["total"])
    for found, expected in ((change(before, after), -0.2), (change(after, before), 1 - 1 / 1.2)):
        assert (found.value, found.low, found.high) == (pytest.approx(expected),) * 3


def test_the_interval_of_a_change_resamples_documents() -> None:
    draw = np.random.default_rng(0)
    before = sums("value_logprob", (-10 - draw.random(40)).tolist(), [5] * 40)
    after = before.assign(total=before["total"] * (1 + 0.1 * draw.standard_normal(40)))
    found = change(before, after)
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert 2 * 1.5 * 0.1 / math.sqrt(40) < found.high - found.low < 2 * 2.5 * 0.1 / math.sqrt(40)


def test_a_rank_that_doubles_has_risen_by_100_percent() -> None:
    before = sums("value_rank", [math.log(4.0) * 3] * 12, [3] * 12)
    after = sums("value_rank", [math.log(8.0) * 3] * 12, [3] * 12)
    assert change(before, after).value == pytest.approx(1.0)


def test_too_few_documents_and_nothing_to_lose_give_a_reason() -> None:
    few = sums("copied", [1.0] * 9, [1] * 9)
    assert change(few, few).reason == "9 documents; an interval needs 10"
    none = sums("copied", [0.0] * 12, [1] * 12)
    assert change(none, none).reason == "it was 0: no change can be told"
