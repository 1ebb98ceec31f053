"""The Parquet tables of `run/corpus`: written by row groups, read by batches, so that no corpus is ever held whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sani_dist.corpus.span import Document, Span, value_id

_LABEL = pa.struct(
    [
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("kind", pa.string()),
        ("class", pa.string()),
        ("detector", pa.string()),
    ]
)
# `labelled` is null where nobody labelled the document, which is not the same as no span.
DOCUMENTS = pa.schema(
    [
        ("id", pa.int64()),
        ("subject", pa.string()),
        ("text", pa.string()),
        ("split", pa.string()),
        ("labelled", pa.list_(_LABEL)),
    ]
)
SPANS = pa.schema(
    [
        ("span_id", pa.int64()),
        ("document", pa.int64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("kind", pa.string()),
        ("class", pa.string()),
        ("detector", pa.string()),
        ("value_id", pa.string()),
    ]
)
TOKEN_SPANS = pa.schema(
    [
        ("span_id", pa.int64()),
        ("split", pa.string()),
        ("row", pa.int64()),
        ("first", pa.int32()),
        ("end", pa.int32()),
        ("kind", pa.string()),
        ("class", pa.string()),
        ("value_id", pa.string()),
    ]
)
# A batch of text: tokenizing it takes about 200 bytes for each token, some 30 MB.
_GROUP_ROWS = 256
_GROUP_CHARACTERS = 2**19


@dataclass(frozen=True)
class StoredSpan:
    """A span as a table holds it: with its id, its document and the keyed hash of its value."""

    span_id: int
    document: int
    span: Span
    value_id: str


class TableWriter:
    """Writes rows to a Parquet file and holds at most one row group; a context manager."""

    def __init__(self, path: Path, schema: pa.Schema, group_rows: int = 1024) -> None:
        self._schema = schema
        self._group_rows = group_rows
        self._rows: list[dict[str, Any]] = []
        self._file = pq.ParquetWriter(path, schema)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, given by column."""
        self._rows.append(row)
        if len(self._rows) >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one row group."""
        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
        self._file.close()


class DocumentWriter(TableWriter):
    """Writes `documents.parquet` in row groups of bounded text."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, DOCUMENTS, _GROUP_ROWS)
        self._characters = 0

    def add(self, document: Document) -> None:
        """Append one document."""
        labelled = None if document.labelled is None else [_span_columns(span) for span in document.labelled]
        self.write(
            {
                "id": document.id,
                "subject": document.subject,
                "text": document.text,
                "split": document.split,
                "labelled": labelled,
            }
        )
        self._characters += len(document.text)
        if self._characters >= _GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one row group."""
        super().flush()
        self._characters = 0


class SpanWriter(TableWriter):
    """Writes a table of spans, numbered in the order of writing from `first_id`."""

    def __init__(self, path: Path, key: bytes, first_id: int = 0) -> None:
        super().__init__(path, SPANS)
        self._key = key
        self._next_id = first_id

    def add(self, document: Document, spans: Iterable[Span]) -> None:
        """Append the spans of one document; documents come in the order of their ids."""
        for span in spans:
            self.write(
                {
                    "span_id": self._next_id,
                    "document": document.id,
                    **_span_columns(span),
                    "value_id": value_id(self._key, span.kind, document.text[span.start : span.end]),
                }
            )
            self._next_id += 1


def read_documents(path: Path) -> Iterator[list[Document]]:
    """Yield the documents in batches of one row group, in the order of their ids."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield [
                Document(
                    row["id"],
                    row["subject"],
                    row["text"],
                    row["split"],
                    None if row["labelled"] is None else tuple(_span(label) for label in row["labelled"]),
                )
                for row in file.read_row_group(group, use_threads=False).to_pylist()
            ]


class SpanReader:
    """Reads a table of spans beside the documents: ask for each document once, in the order of the ids."""

    def __init__(self, path: Path) -> None:
        self._spans = self._read(path)
        self._next = next(self._spans, None)

    def of(self, document: int) -> list[StoredSpan]:
        """Return the spans of the document with this id."""
        found = []
        while self._next is not None and self._next.document <= document:
            if self._next.document == document:
                found.append(self._next)
            self._next = next(self._spans, None)
        return found

    @staticmethod
    def _read(path: Path) -> Iterator[StoredSpan]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    yield StoredSpan(row["span_id"], row["document"], _span(row), row["value_id"])


def _span_columns(span: Span) -> dict[str, Any]:
    return {
        "start": span.start,
        "end": span.end,
        "kind": span.kind,
        "class": span.sensitivity,
        "detector": span.detector,
    }


def _span(row: dict[str, Any]) -> Span:
    return Span(row["start"], row["end"], row["kind"], row["class"], row["detector"])
