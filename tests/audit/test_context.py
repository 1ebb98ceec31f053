"""Whether a span's value could be copied from the text before it."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pandas as pd
import pytest

from sani_dist.audit.context import stands_before


def frame(spans: list[tuple[int, int, int]]) -> pd.DataFrame:
    return pd.DataFrame(spans, columns=["document", "start", "end"])


def last_stands_before(value: str, text: str) -> bool:
    """Of the last occurrence of `value` in `text`."""
    start = text.rindex(value)
    (answer,) = stands_before(frame([(0, start, start + len(value))]), [(0, text)])
    return bool(answer)


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        ("Ann", "It was planned; then Ann came", False),
        ("Ann", "Annabel and then Ann", False),
        ("Ann", "ANN came; then Ann", True),
        ("Ann", "Ann's mother and Ann", True),
        ("Ann", "user_ann, later Ann", True),
        ("12", "in 2012 and 12", False),
        ("12", "1-12, then 12", True),
        ("Ann Lee", "ann\n  lee and Ann Lee", True),
        ("Ann Lee", "Ann. Lee and Ann Lee", False),
        # A value may begin or end with punctuation, which joins to no word.
        ("Dr.", "DR.Lee saw the Dr.", True),
        ("(12)", "x(12)y and (12)", True),
        ("Dr. L", "Dr. Lee and Dr. L", False),
        # Scripts without spaces have no word boundaries.
        ("王明", "病人王明说王明", True),
        ("王明", "病人王名说王明", False),
        ("Ann", "病人Ann说Ann", True),
        # Other forms of one letter: composed and not, wide and not.
        ("José", "Jose\u0301 met José", True),
        ("QX12", "\uff31\uff38\uff11\uff12 then QX12", True),
        ("Jose", "Jose\u0301 met Jose", True),
        # An occurrence that reaches into the span itself is none before it.
        ("王王", "王王王", False),
        ("Ann", "Ann", False),
    ],
)
def test_a_value_stands_before_on_word_boundaries(value: str, text: str, expected: bool) -> None:
    assert last_stands_before(value, text) is expected


def test_every_span_is_compared_with_its_own_document() -> None:
    texts = [(7, "Ann saw Bob, and Bob saw Ann"), (3, "Bob alone"), (9, "nobody")]
    spans = frame([(3, 0, 3), (7, 0, 3), (7, 8, 11), (7, 17, 20), (7, 25, 28)])
    spans.index = pd.Index([11, 5, 8, 2, 4])
    answer = stands_before(spans, iter(texts))
    assert answer.index.tolist() == [11, 5, 8, 2, 4]
    assert answer.tolist() == [False, False, False, True, True]


def test_agrees_with_a_search_of_the_text_before_each_span() -> None:
    draw = random.Random(0)
    words = ["ann", "Ann", "plan", "an", "a", "lee", "Lee-ann", "12", "x12"]
    for document in range(50):
        text = "".join(draw.choice(words) + draw.choice([" ", ", ", "-", "_"]) for _ in range(60))
        spans = [(document, m.start(), m.end()) for m in re.finditer(r"[A-Za-z0-9]+", text)]
        expected = [
            bool(re.search(rf"(?i)(?<![a-z0-9]){text[a:b]}(?![a-z0-9])", text[:a].rstrip())) for _, a, b in spans
        ]
        assert stands_before(frame(spans), [(document, text)]).tolist() == expected
        assert 0 < sum(expected) < len(expected)


def test_many_spans_of_a_long_document_are_found_in_one_pass() -> None:
    """Folding the text before each span instead takes minutes for these 20,000."""
    values = [f"QX-{number}" for number in range(10_000)]
    text = " und ".join(values + values)
    ends = np.cumsum([len(value) + 5 for value in values + values]) - 5
    spans = frame([(0, end - len(value), end) for value, end in zip(values + values, ends, strict=True)])
    started = time.perf_counter()
    answer = stands_before(spans, [(0, text)])
    assert time.perf_counter() - started < 10
    assert answer.tolist() == [False] * 10_000 + [True] * 10_000
