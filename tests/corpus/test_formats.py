"""Other values of the same format."""

from __future__ import annotations

import random
import re
from datetime import datetime

import pytest

from sani_dist.corpus.formats import CANARY, DAYS, alternatives, is_structured


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("PHONE_NUMBER", "(020) 7946-0018", r"\(\d{3}\) \d{4}-\d{4}"), ("RECORD_NUMBER", "QX-77314", r"[A-Z]{2}-\d{5}"),
        ("US_SSN", "123-45-6789", r"\d{3}-\d{2}-\d{4}"), (CANARY, "Blue Zebra 7", r"[A-Z][a-z]{3} [A-Z][a-z]{4} \d"),
    ],
)  # fmt: skip
def test_letters_and_digits_change_and_the_rest_stays(kind: str, value: str, pattern: str) -> None:
    assert is_structured(kind, value)
    others = alternatives(kind, value, 50, random.Random(0))
    assert len(set(others)) == 50
    assert value not in others
    assert all(re.fullmatch(pattern, other) for other in others)
    assert alternatives(kind, value, 50, random.Random(0)) == others


@pytest.mark.parametrize(
    ("value", "layout"),
    [
        ("2021-03-14", "%Y-%m-%d"), ("11/25/1987", "%m/%d/%Y"), ("25.11.1987", "%d.%m.%Y"), ("14 March 2021", "%d %B %Y"),
        ("Mar 14, 2021", "%b %d, %Y"),
    ],
)  # fmt: skip
def test_dates_stay_dates_of_the_same_layout_and_time(value: str, layout: str) -> None:
    assert is_structured("DATE_TIME", value)
    true = datetime.strptime(value, layout)
    others = alternatives("DATE_TIME", value, 200, random.Random(1))
    assert len(set(others)) == 200
    assert value not in others
    for other in others:
        day = datetime.strptime(other, layout)
        assert 0 < abs((day - true).days) <= DAYS
        if "B" not in layout and "b" not in layout:
            assert len(other) == len(value)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("PERSON", "Ann Lee"), ("AGE", "84"), ("DATE_TIME", "last May"), ("IP_ADDRESS", "10.0.0.1"), ("DATE_TIME", "1987"),
        ("ADDRESS", "12 High Street 4455"), (CANARY, "--"),
    ],
)  # fmt: skip
def test_what_has_no_format(kind: str, value: str) -> None:
    assert not is_structured(kind, value)


def test_all_there_are_when_there_are_fewer() -> None:
    assert sorted(alternatives(CANARY, "7", 50, random.Random(0))) == list("012345689")
