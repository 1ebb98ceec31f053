"""The Parquet tables of `run/corpus`: written by row groups, read by batches, so that no corpus is ever held whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sani_dist.corpus.span import Document, Span

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


class StoredSpan(NamedTuple):
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
        self._rows: list[tuple[Any, ...]] = []
        self._file = pq.ParquetWriter(path, schema)

    def write(self, *row: Any) -> None:
        """Append one row, its values in the order of the columns."""
        self._rows.append(row)
        if len(self._rows) >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one row group."""
        if self._rows:
            columns = zip(self._schema, zip(*self._rows, strict=True), strict=True)
            arrays = [pa.array(values, field.type) for field, values in columns]
            self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
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
        labelled = None if document.labelled is None else [_label(span) for span in document.labelled]
        self.write(document.id, document.subject, document.text, document.split, labelled)
        self._characters += len(document.text)
        if self._characters >= _GROUP_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what is held as one row group."""
        super().flush()
        self._characters = 0


class SpanWriter(TableWriter):
    """Writes a table of spans, numbered in the order of writing from `first_id`."""

    def __init__(self, path: Path, first_id: int = 0) -> None:
        super().__init__(path, SPANS)
        self._next_id = first_id

    def add(self, document: int, spans: Iterable[Span], value_ids: Iterable[str]) -> None:
        """Append the spans of one document and the hashes of their values; documents come in the order of their ids."""
        for span, value in zip(spans, value_ids, strict=True):
            self.write(self._next_id, document, *span, value)
            self._next_id += 1


class DocumentReader:
    """Reads `documents.parquet`, a row group at a time. A copy in another process (pickle) opens the file there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(path)

    def __len__(self) -> int:
        """The number of batches."""
        return int(self._file.num_row_groups)

    def __getitem__(self, number: int) -> list[Document]:
        """The documents of one batch, in the order of their ids."""
        table = self._file.read_row_group(number, use_threads=False)
        columns = (table[name].to_pylist() for name in ("id", "subject", "text", "split"))
        return list(map(Document, *columns, _labels(table["labelled"].combine_chunks())))

    def of(self, documents: Sequence[int]) -> list[Document]:
        """The documents of these ids, in their order."""
        found: dict[int, Document] = {}
        column = DOCUMENTS.get_field_index("id")
        last = [self._file.metadata.row_group(g).column(column).statistics.max for g in range(len(self))]
        for group in sorted({bisect_left(last, document) for document in documents}):
            found.update((document.id, document) for document in self[group])
        return [found[document] for document in documents]

    def __reduce__(self) -> tuple[type[DocumentReader], tuple[Path]]:
        return DocumentReader, (self._path,)


def read_documents(path: Path) -> Iterator[list[Document]]:
    """Yield the documents in batches of one row group, in the order of their ids."""
    reader = DocumentReader(path)
    for number in range(len(reader)):
        yield reader[number]


class SpanReader:
    """Reads a table of spans beside the documents, a batch of these at a time. A copy in another process opens the file there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pq.ParquetFile(path)
        metadata, column = self._file.metadata, SPANS.get_field_index("document")
        # The last document of each row group.
        self._last = [
            metadata.row_group(group).column(column).statistics.max for group in range(metadata.num_row_groups)
        ]
        self._group, self._spans = -1, list[StoredSpan]()

    def of(self, documents: Sequence[int]) -> list[list[StoredSpan]]:
        """Return the spans of each of these documents, whose ids ascend."""
        found: dict[int, list[StoredSpan]] = {document: [] for document in documents}
        if documents:
            group = bisect_left(self._last, documents[0])
            while group < len(self._last):
                for stored in self._read(group):
                    if stored.document in found:
                        found[stored.document].append(stored)
                if self._last[group] > documents[-1]:
                    break
                group += 1
        return list(found.values())

    def _read(self, group: int) -> list[StoredSpan]:
        """The spans of a row group, kept until another is read: the next batch begins where this one ends."""
        if group != self._group:
            table = self._file.read_row_group(group, use_threads=False)
            ids, documents, *spans, values = (column.to_pylist() for column in table.columns)
            self._group, self._spans = group, list(map(StoredSpan, ids, documents, map(Span, *spans), values))
        return self._spans

    def __reduce__(self) -> tuple[type[SpanReader], tuple[Path]]:
        return SpanReader, (self._path,)


def _label(span: Span) -> dict[str, Any]:
    return dict(zip(_LABEL.names, span, strict=True))


def _labels(column: pa.ListArray) -> list[tuple[Span, ...] | None]:
    """The labelled spans of each document; None where nobody labelled it."""
    spans = list(map(Span, *(field.to_pylist() for field in column.values.flatten())))
    offsets, nulls = column.offsets.to_pylist(), column.is_null().to_pylist()
    return [
        None if null else tuple(spans[start:end])
        for null, start, end in zip(nulls, offsets[:-1], offsets[1:], strict=True)
    ]
