"""Questions for the true continuation, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest

from sani_dist.audit.utility import continuation_accuracy, continuations

TEXTS = [
    " ".join(f"Text {name} has sentence number {n} about {word}, which is long enough." for n in range(5))
    for name, word in (("A", "rivers"), ("B", "gardens"), ("C", "bridges"))
]


def test_the_true_continuation_follows_in_its_text_and_the_foreign_one_is_of_another() -> None:
    questions = continuations(TEXTS, 9, seed=0)
    assert len(questions) == 9
    for question in questions:
        true, foreign = question.candidates
        (own,) = [text for text in TEXTS if question.before + true in text]
        assert foreign not in own
        assert any(foreign in text for text in TEXTS)
    assert {question.before[5] for question in questions[:3]} == {"A", "B", "C"}  # documents take turns
    assert len({question.candidates[0] for question in questions}) == 9
    assert continuations(TEXTS, 9, seed=0) == questions
    assert continuations(TEXTS, 9, seed=1) != questions


def test_one_text_gives_no_question() -> None:
    assert continuations(TEXTS[:1], 9, seed=0) == []
    assert continuations([], 9, seed=0) == []


def test_accuracy_compares_as_many_tokens_of_both() -> None:
    right = (np.array([-1.0, -1.0, -9.0]), np.array([-2.0, -1.0]))  # -2 against -3: the third token is not counted
    wrong = (np.array([-3.0]), np.array([-2.0, -9.0]))
    found = continuation_accuracy("heldout", [right, right, wrong])
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)
    assert continuation_accuracy("heldout", []).reason == "fewer than two documents of sentences"
