"""Presidio with the real spaCy model."""

from __future__ import annotations

from collections.abc import Container

import pytest

from examples.clinic.notes import write_notes
from sani_dist.config import CorpusSettings, PresidioDetector
from sani_dist.corpus import detect_spans
from sani_dist.corpus.presidio import presidio
from sani_dist.corpus.span import Document
from sani_dist.errors import InputError

from .conftest import KEY


def found(text: str, ordinary: Container[str] = (), **changes) -> set[tuple[str, str, str]]:
    detect = presidio(PresidioDetector.model_validate({"name": "presidio", **changes}), ordinary)
    (spans,) = detect([Document(0, None, text, "repair")])
    return {(text[span.start : span.end], span.kind, span.sensitivity) for span in spans}


def test_finds_identifiers_and_prefers_patterns():
    patterns = [{"kind": "RECORD_NUMBER", "regex": r"MRN (\d+)"}]
    spans = found("Patient John Smith, MRN 5551234567, lives in Boston; write to john@example.org.", patterns=patterns)
    assert {("John Smith", "PERSON", "direct"), ("Boston", "LOCATION", "indirect")} <= spans
    assert ("john@example.org", "EMAIL_ADDRESS", "direct") in spans
    assert [kind for value, kind, _ in spans if "5551234567" in value] == ["RECORD_NUMBER"]


@pytest.mark.parametrize(
    ("text", "people", "without"),
    [
        ("We saw Susan Miller, Glucose 5.", {"Susan Miller", "Glucose"}, {"Susan Miller"}),
        ("Then Brown was told to rest.", {"Brown"}, set()),
        ("Susan Brown came. We told Brown to rest.", {"Susan Brown", "Brown"}, {"Susan Brown", "Brown"}),
        ("Mr. Young agreed with Brown.", {"Young", "Brown"}, {"Young"}),
        ("Seen by Dr. Brown, and Brown agreed.", {"Brown"}, {"Brown"}),
        ("LEE JONES, record. We saw LEE again.", {"LEE JONES", "LEE"}, {"LEE JONES", "LEE"}),
        ("Patient John said hello.", {"John"}, {"John"}),
    ],
)
def test_an_ordinary_word_is_a_name_only_beside_a_longer_one_or_after_a_title(text, people, without):
    """What the language model alone finds shows that each line tests something."""
    ordinary = {"glucose", "brown", "young", "told"}
    for handling, expected in (("keep", people), ("drop", without)):
        spans = found(text, ordinary, entities=["PERSON"], ordinary_words=handling)
        assert {value for value, _, _ in spans} == expected, handling


def test_what_a_pattern_finds_is_never_dropped():
    patterns = [{"kind": "PERSON", "regex": r"Contact: (\w+)"}]
    assert ("Brown", "PERSON", "direct") in found("Contact: Brown", {"brown"}, entities=["PERSON"], patterns=patterns)
    assert ("MRN", "PERSON", "direct") in found("Contact: MRN", {"mrn"}, entities=["PERSON"], patterns=patterns)


def test_words_of_the_layout_are_dropped_and_no_name_is_lost(tmp_path):
    """Notes with labels, and no pattern for names: recall stays, and a quarter of what was protected in vain is not."""
    write_notes(tmp_path / "notes.jsonl", 24, seed=5)
    scores = {}
    for handling in ("keep", "drop"):
        detector = {"name": "presidio", "entities": ["PERSON"], "ordinary_words": handling}
        settings = CorpusSettings.model_validate(
            {"source": str(tmp_path / "notes.jsonl"), "spans": "spans", "detect": [detector]}
        )
        detection = detect_spans(settings, None, tmp_path / handling, KEY)
        score = detection.summary()["score"]
        scores[handling] = (score["recall"]["PERSON"]["found"], score["precision"]["PERSON"]["precision"])
    assert scores["drop"][0] == scores["keep"][0] > 80
    assert 1 - scores["drop"][1] < 0.75 * (1 - scores["keep"][1])


def test_wrong_settings_are_input_errors():
    with pytest.raises(InputError, match="spaCy model no_such_model is not installed"):
        found("x", spacy_model="no_such_model")
    with pytest.raises(InputError, match="entry 1 of `entities` is unknown"):
        found("x", entities=["NOTHING"])
    with pytest.raises(InputError, match="pattern of BAD is wrong"):
        found("x", patterns=[{"kind": "BAD", "regex": "("}])
