"""Presidio with the real spaCy model."""

from __future__ import annotations

import pytest

from sani_dist.config import PresidioDetector
from sani_dist.corpus.presidio import presidio
from sani_dist.corpus.span import Document
from sani_dist.errors import InputError


def found(text: str, **changes) -> set[tuple[str, str, str]]:
    detect = presidio(PresidioDetector.model_validate({"name": "presidio", **changes}))
    (spans,) = detect([Document(0, None, text, "repair")])
    return {(text[span.start : span.end], span.kind, span.sensitivity) for span in spans}


def test_finds_identifiers_and_prefers_patterns():
    patterns = [{"kind": "RECORD_NUMBER", "regex": r"MRN (\d+)"}]
    spans = found("Patient John Smith, MRN 5551234567, lives in Boston; write to john@example.org.", patterns=patterns)
    assert {("John Smith", "PERSON", "direct"), ("Boston", "LOCATION", "indirect")} <= spans
    assert ("john@example.org", "EMAIL_ADDRESS", "direct") in spans
    assert [kind for value, kind, _ in spans if "5551234567" in value] == ["RECORD_NUMBER"]


def test_wrong_settings_are_input_errors():
    with pytest.raises(InputError, match="spaCy model no_such_model is not installed"):
        found("x", spacy_model="no_such_model")
    with pytest.raises(InputError, match="`entities` has NOTHING"):
        found("x", entities=["NOTHING"])
    with pytest.raises(InputError, match="pattern of BAD is wrong"):
        found("x", patterns=[{"kind": "BAD", "regex": "("}])
