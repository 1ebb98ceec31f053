"""Extraction on a case small enough to do by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sani_dist.audit.context import stands_before
from sani_dist.audit.extraction import extraction, extraction_strength, frequency, score_spans
from sani_dist.audit.measurement import Measurement, clopper_pearson
from sani_dist.audit.scores import TokenScores

# Probability and arg-max of eight tokens in each of two rows.
PROBABILITY = np.array([[1, 0.5, 0.5, 0.25, 1, 1, 0.1, 1], [1, 1, 1, 0.9, 0.9, 0.9, 1e-9, 1e-9]])
IS_ARGMAX = np.array([[1, 1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0]], dtype=bool)
#           span: row, first, end, document, kind, in_context
SENSITIVE = [
    (0, 1, 3, 10, "PERSON", False),  # p = 1/4, greedy
    (0, 2, 4, 10, "PERSON", False),  # p = 1/8, not greedy
    (1, 3, 6, 11, "PHONE", False),  # p = .729, greedy
    (1, 6, 8, 11, "PHONE", False),  # p = 1e-18, not greedy
    (0, 4, 6, 10, "PHONE", True),  # p = 1, greedy, but it stands before it
]
SAMPLES = (1, 100)


def table(places: list[tuple[int, int, int, int, str, bool]]) -> pd.DataFrame:
    columns = ("row", "first", "end", "document", "kind", "in_context")
    spans = pd.DataFrame(places, columns=columns).assign(**{"class": "direct"})
    spans["span_id"] = range(100, 100 + len(places))
    spans["frequency"] = [frequency(count) for count in (1, 3, 5, 40, 2)[: len(places)]]
    with np.errstate(divide="ignore"):
        scores = TokenScores(np.log(PROBABILITY).astype(np.float32), IS_ARGMAX)
    return score_spans(scores, spans.sample(frac=1, random_state=0))


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, str, str], Measurement]:
    sensitive = table(SENSITIVE)
    found = extraction(sensitive, sensitive.iloc[:0], SAMPLES)
    return {(m.metric, m.population, ":".join(*m.group.items()) if m.group else ""): m for m in found}


def test_a_span_has_the_product_of_its_tokens() -> None:
    scored = table(SENSITIVE).set_index("span_id")
    assert np.exp(scored["logprob"].loc[[100, 101, 102, 103, 104]]).tolist() == pytest.approx(
        [1 / 4, 1 / 8, 0.729, 1e-18, 1], rel=1e-5
    )
    assert scored["greedy"].loc[[100, 101, 102, 103, 104]].tolist() == [True, False, True, False, True]


def test_greedy(measured: dict[tuple[str, str, str], Measurement]) -> None:
    everything = measured["greedy", "sensitive", ""]
    assert (everything.value, everything.n) == (0.5, 4)
    assert (everything.low, everything.high) == clopper_pearson(2, 4)
    assert measured["greedy", "sensitive", "kind:PERSON"].value == 0.5
    assert measured["greedy", "sensitive", "class:direct"].n == 4
    assert measured["greedy", "sensitive", "context:copyable"].value == 1.0


def test_leak(measured: dict[tuple[str, str, str], Measurement]) -> None:
    one = measured["leak@1", "sensitive", ""]
    assert one.value == pytest.approx((1 / 4 + 1 / 8 + 0.729 + 1e-18) / 4, rel=1e-5)
    leaks = [1 - (1 - p) ** 100 for p in (1 / 4, 1 / 8, 0.729)]
    assert measured["leak@100", "sensitive", ""].value == pytest.approx(sum(leaks) / 4, rel=1e-5)
    assert measured["leak@100", "sensitive", "context:copyable"].value == pytest.approx(1)
    # 1 - (1 - 1e-18)^100 is 1e-16, which 1 - ... in float64 would call 0.
    tiny = extraction(table(SENSITIVE).query("span_id == 103"), table(SENSITIVE).iloc[:0], (100,))
    (leak,) = [m for m in tiny if m.metric == "leak@100" and m.population == "sensitive" and not m.group]
    assert leak.value == pytest.approx(1e-16, rel=1e-4)
    assert leak.low is not None
    assert math.isclose(leak.low, leak.value, rel_tol=1e-6)


def test_groups_by_how_often_a_value_occurs(measured: dict[tuple[str, str, str], Measurement]) -> None:
    found = {name: measured["greedy", "sensitive", f"frequency:{name}"] for name in ("1", "2-4", "5+")}
    assert {name: (m.value, m.n) for name, m in found.items()} == {"1": (1.0, 1), "2-4": (0.0, 1), "5+": (0.5, 2)}
    assert not any(key[1:] == ("control", "frequency:1") for key in measured)


def test_samples_until_a_leak(measured: dict[tuple[str, str, str], Measurement]) -> None:
    """1 / p is 4, 8, 1.37 and 1e18: the median lies between 4 and 8."""
    found = measured["samples_to_leak", "sensitive", ""]
    assert found.value == pytest.approx(6, rel=1e-5)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= 6 <= found.high


def test_partial_memory(measured: dict[tuple[str, str, str], Measurement]) -> None:
    assert measured["exact_memorization", "sensitive", ""].value == pytest.approx((1 + 1 / 2 + 1 + 0) / 4)
    assert measured["extraction_strength", "sensitive", ""].value == pytest.approx((1 + 0 + 1 + 0) / 4)


@pytest.mark.parametrize(
    ("hits", "strength"), [("1111", 1), ("0111", 3 / 4), ("1011", 2 / 4), ("1110", 0), ("0", 0), ("1", 1)]
)
def test_extraction_strength(hits: str, strength: float) -> None:
    assert extraction_strength(np.array([c == "1" for c in hits])) == strength


def test_a_population_without_spans_says_so(measured: dict[tuple[str, str, str], Measurement]) -> None:
    control = [m for m in measured.values() if m.population == "control"]
    assert len(control) == 5 * 3 + 3  # all, two kinds, one class, copyable: greedy and two leaks; and three of all
    assert all(m.value is None and m.low is None and m.n == 0 and m.reason for m in control)


def test_what_stands_before_a_span() -> None:
    text = "Ann Lee met  ANN\nlee, then Bo."
    spans = pd.DataFrame({"document": [7, 7, 7], "start": [0, 13, 27], "end": [7, 20, 29]}, index=[4, 2, 9])
    assert stands_before(spans, [(3, "Bo"), (7, text)]).tolist() == [False, True, False]
