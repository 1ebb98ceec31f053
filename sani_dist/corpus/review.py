"""What was found, for a person to correct, and its way back: `corpus.spans: review.csv` (or a file of another tool) are annotations."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sani_dist.corpus.annotations import parse_spans
from sani_dist.corpus.lines import kind_of
from sani_dist.corpus.read import read_table
from sani_dist.corpus.review_tools import TOOLS, ReviewedTexts
from sani_dist.corpus.sources import KINDS, shown
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.tables import SpanReader, read_documents
from sani_dist.errors import InputError
from sani_dist.messages import columns

TABLE = "csv"
_COLUMNS = ("document", "start", "end", "kind", "class", "text", "context", "check")
_CONTEXT = 40
# What a spreadsheet takes for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Review(Protocol):
    """Corrected findings."""

    def spans(self, document: int, text: str) -> tuple[Span, ...]:
        """Return the spans of a document, checked against its text. All were reviewed: no line means no span."""

    def check_all_used(self) -> None:
        """Raise `InputError` if something is left of documents that are not there."""


def review_table(run: Path, tool: str = TABLE) -> Path:
    """Write what was found in the documents of `run` to be corrected in `tool`, and return the path.

    tool: `csv`, a table `run/corpus/review.csv` with one found span a line, or one of `TOOLS`, below `run/corpus/review`. It shows
    the values, so only its owner can read it. To correct the table: delete a line, change `start`, `end`, `kind` or `class`, add a
    line (`class`, `text`, `context` and `check` may stay empty). General text is left out. Raises `InputError` for another tool.
    """
    check_tool(tool)
    if tool != TABLE:
        folder = run / "corpus" / "review"
        folder.mkdir(mode=0o700, exist_ok=True)
        return TOOLS[tool](folder, _found(run))
    path = run / "corpus" / "review.csv"
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerows(_lines(run))
    return path


def check_tool(tool: str) -> None:
    """Raise `InputError` for a tool that `review_table` does not know."""
    if tool != TABLE and tool not in TOOLS:
        raise InputError(f"--review-as: expected one of {TABLE}, {', '.join(TOOLS)}")


def is_review(spans: str | None) -> bool:
    """Whether `corpus.spans` names corrected findings, not a column: it ends as a file does, or has a slash in it."""
    return spans is not None and ("/" in spans or kind_of(spans) in KINDS)


def read_review(spans: str | None) -> Review | None:
    """The corrected findings that `corpus.spans` names; None if it names a column."""
    if spans is None or not is_review(spans):
        return None
    return ReviewTable(Path(spans)) if kind_of(spans) == ".csv" else ReviewedTexts(spans)


class ReviewTable:
    """A corrected table. It is held whole: what a person can review fits."""

    def __init__(self, path: Path) -> None:
        self._path = shown(str(path))
        self._spans: dict[int, list[tuple[int, dict[str, Any], str]]] = {}
        if not path.exists():
            raise InputError(f"corpus.spans: {self._path} does not exist")
        for number, row in read_table(path):
            missing = [column for column in ("document", "start", "end", "kind") if column not in row]
            if missing:
                raise InputError(f"{self._path} has no column `{missing[0]}`; it has {columns(row)}")
            try:
                document, start, end = (int(row[column]) for column in ("document", "start", "end"))
            except ValueError:
                raise InputError(f"{self._path}: record {number} needs whole numbers document, start and end") from None
            span = {"start": start, "end": end, "kind": _unquoted(row["kind"]), "class": row.get("class")}
            self._spans.setdefault(document, []).append((number, span, row.get("check", "")))

    def spans(self, document: int, text: str) -> tuple[Span, ...]:
        """Return the spans of a document, checked against its text. All were reviewed: no line means no span."""
        found: list[Span] = []
        for number, span, check in self._spans.pop(document, []):
            where = f"{self._path}: record {number}"
            if check and check != _check(text):
                raise InputError(f"{where} was written for another text than document {document} has now; detect again")
            found += parse_spans([span], text, where)
        return tuple(sorted(found, key=lambda span: (span.start, span.end, span.kind)))

    def check_all_used(self) -> None:
        """Raise `InputError` if spans are left of documents that are not there."""
        for document, spans in self._spans.items():
            raise InputError(
                f"{self._path}: record {spans[0][0]} names document {document}, which the corpus does not have"
            )


def _found(run: Path) -> Iterator[tuple[Document, list[Span]]]:
    """The documents with what was found in them, without general text."""
    spans = SpanReader(run / "corpus" / "spans.parquet")
    for batch in read_documents(run / "corpus" / "documents.parquet"):
        for document, found in zip(batch, spans.of([document.id for document in batch]), strict=True):
            if not document.split.startswith("general"):
                yield document, [stored.span for stored in found]


def _lines(run: Path) -> Iterator[tuple[int | str, ...]]:
    for document, spans in _found(run):
        text = document.text
        for span in spans:
            context = text[max(0, span.start - _CONTEXT) : span.end + _CONTEXT]
            value = text[span.start : span.end]
            cells = map(_quoted, (span.kind, span.sensitivity, value, context))
            yield document.id, span.start, span.end, *cells, _check(text)


def _quoted(cell: str) -> str:
    """A cell that a spreadsheet shows and does not calculate."""
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _unquoted(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _check(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
