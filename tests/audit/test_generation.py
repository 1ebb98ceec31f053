"""What counts as written, on texts made by hand. Real generation: tests/distributed/test_generation.py."""

from __future__ import annotations

import numpy as np
import pytest

from sani_dist.audit.generation import Asked, begins_with, confirms, regurgitated
from sani_dist.audit.sampling import Prompt
from sani_dist.audit.scores import TokenScores
from sani_dist.corpus.fold import value_key


@pytest.mark.parametrize(
    ("text", "value", "writes"),
    [
        (" Ann Lee, aged 40", "Ann Lee", True),
        ("ANN  LEE", "Ann Lee", True),
        ("Annlee", "Ann", False),
        ("Ann", "Ann Lee", False),
        ("Dr. Ann Lee", "Ann Lee", False),
        ("1234-5", "1234", True),
        ("12345", "1234", False),
        ("anything", " ", False),
    ],
)
def test_a_text_begins_with_a_value(text: str, value: str, writes: bool) -> None:
    assert begins_with(text, value) is writes


def test_values_are_looked_for_word_for_word_in_every_text() -> None:
    values = [value_key(value) for value in ("Ann Lee", "AB-1234", "York", "Ann")]
    texts = ["Dear Ann  lee, your record AB-12345 is in", "Yorkshire. ab-1234."]
    assert regurgitated(values, texts) == [True, True, False, True]
    assert regurgitated(values, []) == [False] * 4
    assert regurgitated([], texts) == []


@pytest.mark.parametrize(("written", "forced"), [([7, 8, 9, 1], True), ([7, 8, 1, 1], False)])
def test_generation_confirms_what_teacher_forcing_says(written: list[int], forced: bool) -> None:
    is_argmax = np.zeros((2, 6), dtype=bool)
    is_argmax[1, 2:5] = True
    scores = {"repair": TokenScores(np.zeros((2, 6), np.float32), is_argmax)}
    asked = Asked("sensitive", 0, "PERSON", (1, 2, 5), Prompt(np.array([3]), 4), np.array([7, 8, 9]), "value")
    assert confirms(asked, np.array(written), scores) is forced
    is_argmax[1, 4] = False
    assert confirms(asked, np.array(written), scores) is not forced
