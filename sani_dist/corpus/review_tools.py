"""Findings as annotation tools read them, so that people correct in the tool they know; and corrections on their way back.

A tool may change the white space of a text, and number its records as it likes. So a correction belongs to the documents that have its
text, white space aside, and its places are counted in visible characters.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sani_dist.corpus.annotations import parse_spans, with_class
from sani_dist.corpus.read import read_rows
from sani_dist.corpus.sources import shown
from sani_dist.corpus.span import Document, Span
from sani_dist.errors import InputError

Found = Iterable[tuple[Document, list[Span]]]

_TEXTS = ("text", "data", "source_text")
_SPANS = ("spans", "label", "labels", "entities", "ents", "privacy_mask")
# White space, and what XML or an editor does not keep.
_INVISIBLE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


class ReviewedTexts:
    """Corrected texts of a tool. They are held whole: what a person can review fits."""

    def __init__(self, source: str) -> None:
        self._where = shown(source)
        self._spans: dict[
            bytes, tuple[int, set[Span]]
        ] = {}  # by text: the first record with it, and places in visible characters
        self._used: set[bytes] = set()
        if not Path(source).exists():
            raise InputError(f"corpus.spans: {self._where} does not exist")
        for number, row in read_rows(source):
            where = f"{self._where}: record {number}"
            text = next((row[name] for name in _TEXTS if isinstance(row.get(name), str)), None)
            raw = next((row[name] for name in _SPANS if row.get(name) is not None), None)
            if text is None or raw is None:
                raise InputError(f"{where} has no text, or no spans; export every text with its annotations")
            before = _visible_before(text)
            spans = {s._replace(start=before[s.start], end=before[s.end]) for s in parse_spans(raw, text, where)}
            self._spans.setdefault(_key(text), (number, set()))[1].update(s for s in spans if s.start < s.end)

    def spans(self, document: int, text: str) -> tuple[Span, ...]:
        """Return the spans of a document. Raises `InputError` for one that is not among the corrected texts."""
        key = _key(text)
        if key not in self._spans:
            raise InputError(
                f"{self._where} does not have the text of document {document}; export all texts, or detect again"
            )
        self._used.add(key)
        places = [i for i, character in enumerate(text) if not _INVISIBLE.match(character)]
        spans = (s._replace(start=places[s.start], end=places[s.end - 1] + 1) for s in self._spans[key][1])
        return tuple(sorted(spans, key=lambda span: (span.start, span.end, span.kind)))

    def check_all_used(self) -> None:
        """Raise `InputError` if there are texts that the corpus does not have."""
        for key, (number, _) in self._spans.items():
            if key not in self._used:
                raise InputError(f"{self._where}: record {number} has a text that the corpus does not have")


def _key(text: str) -> bytes:
    return hashlib.blake2b(_INVISIBLE.sub("", text).encode(), digest_size=16).digest()


def _visible_before(text: str) -> list[int]:
    """For each place in a text the number of visible characters before it."""
    counts = [0]
    for character in text:
        counts.append(counts[-1] + (_INVISIBLE.match(character) is None))
    return counts


def _label_studio(folder: Path, found: Found) -> Path:
    """One JSON array of tasks; offsets in UTF-16, as the browser counts."""

    def task(document: Document, spans: list[Span]) -> dict[str, Any]:
        text = _plain(document.text)
        result = [
            {
                "from_name": "label",
                "to_name": "text",
                "type": "labels",
                "value": {
                    "start": _units(text[: span.start]),
                    "end": _units(text[: span.end]),
                    "text": text[span.start : span.end],
                    "labels": [_label(span)],
                },
            }
            for span in spans
        ]
        return {"data": {"text": text, "document": document.id}, "annotations": [{"result": result}]}

    return _write(folder / "label-studio.json", _array(task(*one) for one in found))


def _doccano(folder: Path, found: Found) -> Path:
    def line(document: Document, spans: list[Span]) -> str:
        labels = [[span.start, span.end, _label(span)] for span in spans]
        return json.dumps({"id": document.id, "text": _plain(document.text), "label": labels}, ensure_ascii=False)

    return _write(folder / "doccano.jsonl", (f"{line(*one)}\n" for one in found))


def _spacy(folder: Path, found: Found) -> Path:
    def doc(document: Document, spans: list[Span]) -> dict[str, Any]:
        ents = [{"start": span.start, "end": span.end, "label": _label(span)} for span in spans]
        return {"text": _plain(document.text), "ents": ents}

    return _write(folder / "spacy.json", _array(doc(*one) for one in found))


def _brat(folder: Path, found: Found) -> Path:
    """A folder with a text and its annotations for each document."""
    inner = _new_folder(folder / "brat")
    for document, spans in found:
        text = _plain(document.text)
        lines = (
            f"T{i}\t{re.sub(r'[^A-Za-z0-9_-]', '_', _label(span))} {span.start} {span.end}\t{_on_one_line(text, span)}\n"
            for i, span in enumerate(spans, 1)
        )
        _write(inner / f"document-{document.id:08d}.txt", [text])
        _write(inner / f"document-{document.id:08d}.ann", lines)
    return inner


def _conll(folder: Path, found: Found) -> Path:
    """Words and their tags, cut where a span begins or ends inside a word."""

    def document_lines(document: Document, spans: list[Span]) -> Iterator[str]:
        yield "-DOCSTART-\tO\n\n"
        cuts = sorted({place for span in spans for place in (span.start, span.end)})
        inside = {span.start: span for span in spans}
        current: Span | None = None
        for start, end in _words(document.text, cuts):
            if current is not None and start >= current.end:
                current = None
            begins = [span for place, span in inside.items() if place == start]
            current = begins[0] if begins else current
            tag = "O" if current is None else f"{'B' if begins else 'I'}-{re.sub(_INVISIBLE, '_', _label(current))}"
            yield f"{document.text[start:end]}\t{tag}\n"
        yield "\n"

    return _write(folder / "review.conll", (line for one in found for line in document_lines(*one)))


def _i2b2(folder: Path, found: Found) -> Path:
    """A folder with the XML of i2b2 2014 for each document."""
    inner = _new_folder(folder / "i2b2")
    for document, spans in found:
        text = _INVISIBLE.sub(lambda match: match[0] if match[0] in "\n\t" else " ", document.text)
        root = ET.Element("deIdi2b2")
        ET.SubElement(root, "TEXT").text = text
        tags = ET.SubElement(root, "TAGS")
        for i, span in enumerate(spans):
            said = _on_one_line(text, span)
            places = {"id": f"P{i}", "start": str(span.start), "end": str(span.end), "text": said}
            ET.SubElement(tags, "PHI", {**places, "TYPE": _label(span), "comment": ""})
        _write(inner / f"document-{document.id:08d}.xml", [ET.tostring(root, "unicode")])
    return inner


TOOLS: dict[str, Callable[[Path, Found], Path]] = {
    "label-studio": _label_studio,
    "doccano": _doccano,
    "brat": _brat,
    "spacy": _spacy,
    "conll": _conll,
    "i2b2": _i2b2,
}


def _label(span: Span) -> str:
    return with_class(span.kind, span.sensitivity)


def _plain(text: str) -> str:
    """Without carriage returns, which some tools count and others do not; as long as before."""
    return text.replace("\r", " ")


def _on_one_line(text: str, span: Span) -> str:
    return _INVISIBLE.sub(" ", text[span.start : span.end])


def _units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def _words(text: str, cuts: list[int]) -> Iterator[tuple[int, int]]:
    """Places of the words, cut at `cuts`."""
    next_cut = 0
    for match in re.finditer(r"\S+", text):
        start = match.start()
        while next_cut < len(cuts) and cuts[next_cut] < match.end():
            if cuts[next_cut] > start:
                yield start, cuts[next_cut]
                start = cuts[next_cut]
            next_cut += 1
        yield start, match.end()


def _array(values: Iterable[Any]) -> Iterator[str]:
    separator = "[\n"
    for value in values:
        yield separator + json.dumps(value, ensure_ascii=False)
        separator = ",\n"
    yield "\n]\n" if separator != "[\n" else "[]\n"


def _write(path: Path, parts: Iterable[str]) -> Path:
    """For its owner alone; what an earlier review left is replaced."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.writelines(parts)
    return path


def _new_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700)
    return path
