"""The demo's notes: labels are exact, notes are reproducible, and no two share an identifier."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.clinic.identities import MAX_IDENTITIES
from examples.clinic.notes import write_notes
from sani_dist.errors import InputError

KINDS = {
    "PERSON": r"[A-Z]\w+(?: [A-Z]\w+)?",
    "RECORD_NUMBER": r"[A-Z]{2}-\d{6}|[1-9]\d{7}",
    "DATE_TIME": r"\d{2}/\d{2}/\d{4}|\d{4}-\d{2}-\d{2}|\d{2} \w+ \d{4}",
    "PHONE_NUMBER": r"(?:\(\d{3}\) |\d{3}-)555-01\d{2}",
    "ADDRESS": r"\d{3} \w+ \w+",
    "LOCATION": r"[A-Z][a-z]+",
    "EMAIL_ADDRESS": r"[a-z.]+\d{2}@example\.(?:com|net|org)",
    "INSURANCE_NUMBER": r"[A-Z]{3}-\d{4}-\d{4}",
    "US_SSN": r"9\d{2}-\d{2}-\d{4}",
    "OCCUPATION": r"[a-z -]+ at the [A-Z]\w+ [A-Z]\w+",
}


def _notes(folder: Path, count: int, seed: int = 0, start: int = 0) -> list[dict[str, Any]]:
    path = folder / "notes.jsonl"
    write_notes(path, count, seed, start)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _values(note: dict[str, Any]) -> list[tuple[str, str]]:
    return [(span["kind"], note["text"][span["start"] : span["end"]]) for span in note["spans"]]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return _notes(tmp_path_factory.mktemp("notes"), MAX_IDENTITIES)


def test_every_span_is_exactly_a_value_of_its_kind(notes: list[dict[str, Any]]) -> None:
    for note in notes:
        for kind, value in _values(note):
            assert re.fullmatch(KINDS[kind], value), (kind, value)


def test_spans_do_not_overlap_and_each_note_has_many(notes: list[dict[str, Any]]) -> None:
    for note in notes:
        ends = [0, *(span["end"] for span in note["spans"])]
        assert all(end <= span["start"] < span["end"] for end, span in zip(ends, note["spans"], strict=False))
        assert 8 <= len(note["spans"]) <= 12


def test_no_identifier_stands_unlabelled_anywhere(notes: list[dict[str, Any]]) -> None:
    values = {value for note in notes for _, value in _values(note)}
    for note in notes:
        rest, end = "", 0
        for span in note["spans"]:
            rest, end = rest + note["text"][end : span["start"]] + "\0", span["end"]
        rest = (rest + note["text"][end:]).lower()
        assert not [v for v in values if v.lower() in rest and re.search(rf"\b{re.escape(v.lower())}\b", rest)]


def test_notes_show_all_kinds_classes_and_layouts(notes: list[dict[str, Any]]) -> None:
    assert {kind for note in notes for kind, _ in _values(note)} == set(KINDS)
    assert {span["class"] for note in notes for span in note["spans"]} == {"direct", "indirect"}
    openings = Counter(note["text"].split()[0] for note in notes)
    assert len(openings) == 4
    assert min(openings.values()) > MAX_IDENTITIES / 10
    assert all(Counter(kind for kind, _ in _values(note))["PERSON"] >= 3 for note in notes)


def test_the_same_seed_gives_the_same_notes_whatever_the_range(tmp_path: Path) -> None:
    assert _notes(tmp_path, 6) == _notes(tmp_path, 6)
    assert _notes(tmp_path, 6)[4:] == _notes(tmp_path, 2, start=4)
    assert _notes(tmp_path, 6) != _notes(tmp_path, 6, seed=1)


def test_no_two_notes_share_an_identifier(notes: list[dict[str, Any]]) -> None:
    owner: dict[str, str] = {}
    for note in notes:
        for _, value in _values(note):
            assert owner.setdefault(value, note["patient"]) == note["patient"]
    assert len(set(owner.values())) == MAX_IDENTITIES


def test_more_notes_than_distinct_identifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"at most {MAX_IDENTITIES} notes"):
        _notes(tmp_path, 1, start=MAX_IDENTITIES)
