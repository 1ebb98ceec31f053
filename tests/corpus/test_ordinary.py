"""Words that a corpus also writes without a capital."""

from __future__ import annotations

import pytest

from sani_dist.corpus.ordinary import OrdinaryWords
from sani_dist.corpus.span import Document


def words_of(*texts: str) -> OrdinaryWords:
    words = OrdinaryWords()
    for number, text in enumerate(texts):
        words.add(Document(number, None, text, "repair"))
    return words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The glucose is high.", True),
        ("A high (glucose) level", True),
        ('He said "glucose".', True),
        ("Glucose: 5", False),
        ("Write to glucose@example.org", False),
        ("Look at www.example.org/glucose", False),
        ("The user-glucose and x_glucose and glucose5", False),
        ("Ein älterer Mann, glucose!", True),
    ],
)
def test_only_a_whole_word_in_lower_case_counts(text: str, expected: bool) -> None:
    assert ("glucose" in words_of(text, text + " Again")) is expected


def test_one_document_is_not_enough() -> None:
    assert "glucose" not in words_of("The glucose, and glucose again.", "Glucose: 5")
    assert "glucose" in words_of("The glucose.", "Glucose: 5", "A glucose")


def test_text_without_capitals_says_nothing_about_names() -> None:
    chat = "hi this is john and i am not well " * 8
    assert "john" not in words_of(chat, chat + "today", chat + "again")
    assert "well" in words_of("I am well.", "All is well.", chat)
