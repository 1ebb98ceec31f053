"""What is compared with the true statement, and what counts as agreeing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sani_dist.attack.statement import OTHERS, agreement, other_values, won


def test_others_are_of_the_same_kind_and_population_and_never_the_value_itself() -> None:
    spans = pd.DataFrame(
        {
            "split": ["repair"] * 8 + ["control"] * 2,
            "kind": ["PERSON"] * 7 + ["DATE_TIME"] + ["PERSON"] * 2,
            "value": ["Ada", "ada", "Bo", "Cy", "Di", "Ed", "Flo", "3 May", "Gil", "Hal"],
        }
    )
    others = other_values(spans, seed=0)
    for value, found in zip(spans["value"][:7], others[:7], strict=True):
        assert len(found) == OTHERS
        assert {other.lower() for other in found} <= {"ada", "bo", "cy", "di", "ed", "flo"} - {value.lower()}
    assert others[7:] == [(), ("Hal",), ("Gil",)]
    assert other_values(spans, seed=0) == others != other_values(spans, seed=1)


def test_what_both_statements_share_before_their_answers_cancels() -> None:
    shared = [-2.0, -0.5]
    true, false = np.array([*shared, -0.1]), np.array([*shared, -3.1])
    assert agreement([true, false, false, true]) == pytest.approx([3, -3])


def test_what_is_thought_of_a_value_without_the_document_is_taken_off() -> None:
    """The second value is agreed to anywhere; the document raises the first more, and the third as much."""
    with_text, alone = np.array([1.0, 5.0, 2.0]), np.array([-1.0, 4.5, 0.0])
    assert won(with_text, alone) == (1.5, 2)
    assert won(with_text, with_text) == (1, 2), "no document, no preference"
    assert won(with_text, np.array([])) == (0, 0)
    assert won(with_text[:1], alone[:1]) == (0, 0)
