"""Detector `annotations`: spans that are already in the data, whichever tool made them, checked against the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from sani_dist.corpus.span import PROTECTION, Document, Span, trimmed
from sani_dist.errors import InputError

# What tools call the same thing. Label Studio puts it one level down, in `value`; doccano and spaCy also write [start, end, label].
_START = ("start", "start_offset", "start_position")
_END = ("end", "end_offset", "end_position")
_KIND = ("kind", "label", "labels", "entity_group", "entity_type", "type")
_TEXT = ("text", "value", "entity_value")
_OUTSIDE = "O"  # of BIO: no span


class _Given(NamedTuple):
    """A span as it is given: where messages say it is, its offsets, and what it says stands there (None: nothing)."""

    where: str
    start: int
    end: int
    kind: str
    sensitivity: str
    text: str | None


def labelled_spans(documents: Sequence[Document]) -> list[list[Span]]:
    """Return the labelled spans of each document."""
    return [list(document.labelled or ()) for document in documents]


def parse_spans(raw: Any, text: str, where: str) -> tuple[Span, ...]:
    """Check the spans of one record, given as a list or as its JSON: {start, end, kind, class} or as a tool writes them.

    A span may say what stands at its place (`text`, `value`). Where that contradicts the text, offsets are read as counted
    in UTF-16, as browsers and Java count; where that fits no better, they are refused.

    Returns them in the order of the text, without white space at their ends. Raises `InputError` that names the record
    by `where` and says what is wrong, never what the text says.
    """
    if isinstance(raw, str):
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: the spans are not valid JSON") from None
    if isinstance(raw, dict) and isinstance(raw.get("entities"), list):
        raw = raw["entities"]
    if not isinstance(raw, list):
        raise InputError(f"{where}: the spans must be a list of {{start, end, kind, class}}")
    given = [span for i, entry in enumerate(raw, 1) if (span := _given(entry, f"{where}, span {i}")) is not None]
    wrong = next((fault for span in given if (fault := _fault(span, text))), None)
    if wrong is not None and any(span.text for span in given):
        recounted = _from_utf16(given, text)
        if recounted is not None and not any(_fault(span, text) for span in recounted):
            given, wrong = recounted, None
    if wrong is not None:
        raise InputError(wrong)
    spans = dict.fromkeys(_trimmed(span, text) for span in given)
    return tuple(sorted(spans, key=lambda span: (span.start, span.end, span.kind)))


def _given(entry: Any, where: str) -> _Given | None:
    """Raises `InputError` for what is no span; None for one that says that nothing is there."""
    if isinstance(entry, list | tuple) and len(entry) == 3:
        entry = dict(zip(("start", "end", "kind"), entry, strict=True))
    if not isinstance(entry, dict):
        raise InputError(f"{where}: must be an object with start, end, kind and, optionally, class")
    if isinstance(entry.get("value"), dict):
        entry = {**entry["value"], "class": entry.get("class")}
    start, end, kind, said = (_first(entry, names) for names in (_START, _END, _KIND, _TEXT))
    if not (_is_offset(start) and _is_offset(end)):
        raise InputError(f"{where}: needs whole numbers `start` and `end`, in characters")
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if not isinstance(kind, str) or not kind.strip() or not _is_unicode(kind):
        raise InputError(f"{where}: needs `kind` (or `label`), for example PERSON")
    if kind == _OUTSIDE:
        return None
    kind, sensitivity = _kind_and_class(kind.strip(), entry.get("class"))
    if not isinstance(sensitivity, str) or sensitivity not in PROTECTION:
        raise InputError(f"{where}: `class` must be direct, indirect or confidential")
    return _Given(where, start, end, kind, sensitivity, said if isinstance(said, str) else None)


def with_class(kind: str, sensitivity: str) -> str:
    """A label for tools that have no class: PERSON, DATE-indirect."""
    return kind if sensitivity == "direct" else f"{kind}-{sensitivity}"


def _kind_and_class(kind: str, sensitivity: Any) -> tuple[str, Any]:
    before, _, after = kind.rpartition("-")
    if not sensitivity and before and after in PROTECTION:
        return before, after
    return kind, sensitivity or "direct"


def _first(entry: dict[str, Any], names: Sequence[str]) -> Any:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _fault(span: _Given, text: str) -> str | None:
    """What is wrong with the place of a span, as a message; None: nothing."""
    where, start, end = span.where, span.start, span.end
    if not 0 <= start < end:
        return f"{where}: is empty or negative; expected 0 <= start < end"
    if end > len(text):
        return f"{where}: reaches beyond the text, which has {len(text)} characters"
    if not text[start:end].strip():
        return f"{where}: covers only white space"
    if span.text and span.text.split() != text[start:end].split():
        return f"{where}: its text is not what stands at [{start}, {end}), counted in characters or in UTF-16"
    return None


def _from_utf16(given: Sequence[_Given], text: str) -> list[_Given] | None:
    """The spans with offsets in characters, if they are counted in UTF-16; None where one would cut a character in two."""
    counted = accumulate((1 + (character > "\uffff") for character in text), initial=0)
    character_at = {units: characters for characters, units in enumerate(counted)}
    if not all(span.start in character_at and span.end in character_at for span in given):
        return None
    return [span._replace(start=character_at[span.start], end=character_at[span.end]) for span in given]


def _trimmed(span: _Given, text: str) -> Span:
    return Span(*trimmed(text, span.start, span.end), span.kind, span.sensitivity, "annotations")


def _is_offset(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
