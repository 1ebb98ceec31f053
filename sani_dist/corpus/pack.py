"""Pieces of documents into rows of one length, by best fit, and rows into an Arrow file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from sani_dist.corpus.encode import Encoded
from sani_dist.corpus.rows import LEARN, NO_DOCUMENT, SENSITIVE

# Rows that wait for pieces. More fill better and hold more: at 64 the packing is within 1 % of what 1024 give.
OPEN_ROWS = 64
_ROWS_IN_A_RECORD_BATCH = 256


def pack(
    pieces: Iterable[Encoded], row_length: int, open_rows: int = OPEN_ROWS, *, alone: bool = False
) -> Iterator[list[Encoded]]:
    """Yield rows, each a list of pieces of at most `row_length` tokens together.

    A piece goes into the open row that it fills best (of equals the oldest); when more than `open_rows` are open, the
    fullest is closed. Two pieces of one document never share a row: they overlap, and attention tells documents apart
    by their id. `alone`: each piece gets a row to itself, for models whose attention does not stop between documents.
    """
    if alone:
        yield from ([piece] for piece in pieces)
        return
    rows: list[tuple[int, list[Encoded]]] = []  # (free tokens, pieces), oldest first
    for piece in pieces:
        size = len(piece.input_ids)
        fits = [(free, i) for i, (free, row) in enumerate(rows) if free >= size and row[-1].document != piece.document]
        if fits:
            free, i = min(fits)
            rows[i] = (free - size, [*rows[i][1], piece])
        else:
            i = len(rows)
            rows.append((row_length - size, [piece]))
        if rows[i][0] == 0:
            yield rows.pop(i)[1]
        elif len(rows) > open_rows:
            fullest = min(range(len(rows)), key=lambda i: rows[i][0])
            yield rows.pop(fullest)[1]
    for _, row in rows:
        yield row


def write_rows(path: Path, rows: Iterable[list[Encoded]], row_length: int, padding: int) -> Iterator[list[Encoded]]:
    """Write rows to an Arrow file that `PackedRows` maps into memory, and pass each on, in the order of the file.

    Columns: input_ids int32 [row_length], role uint8 [row_length], document int64 [row_length], position int32
        [row_length], repeated uint8 [row_length], whether a sensitive token's value stands before it in the row; learnable and sensitive
        int32, the targets of these roles. `padding` is the token id that fills a row up.
    """
    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.int32(), row_length)),
            ("role", pa.list_(pa.uint8(), row_length)),
            ("document", pa.list_(pa.int64(), row_length)),
            ("position", pa.list_(pa.int32(), row_length)),
            ("repeated", pa.list_(pa.uint8(), row_length)),
            ("learnable", pa.int32()),
            ("sensitive", pa.int32()),
        ]
    )
    held: list[list[Encoded]] = []
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        for row in rows:
            held.append(row)
            if len(held) == _ROWS_IN_A_RECORD_BATCH:
                file.write_batch(_record_batch(held, row_length, padding, schema))
                held = []
            yield row
        if held:
            file.write_batch(_record_batch(held, row_length, padding, schema))


def _record_batch(rows: Sequence[list[Encoded]], row_length: int, padding: int, schema: pa.Schema) -> pa.RecordBatch:
    shape = (len(rows), row_length)
    input_ids = np.full(shape, padding, np.int32)
    role = np.zeros(shape, np.uint8)
    document = np.full(shape, NO_DOCUMENT, np.int64)
    position = np.zeros(shape, np.int32)
    repeated = np.zeros(shape, np.uint8)
    for i, row in enumerate(rows):
        start = 0
        for piece in row:
            end = start + len(piece.input_ids)
            input_ids[i, start:end] = piece.input_ids
            role[i, start:end] = piece.role
            document[i, start:end] = piece.document
            position[i, start:end] = np.arange(end - start)
            if piece.earlier is not None:
                repeated[i, start:end] = (piece.role == SENSITIVE) & (piece.earlier >= 0)
            start = end
    columns = [_fixed_lists(values, row_length) for values in (input_ids, role, document, position, repeated)]
    # The first token of a row is nobody's target; its role is IGNORE already.
    counts = [pa.array((role == wanted).sum(axis=1).astype(np.int32)) for wanted in (LEARN, SENSITIVE)]
    return pa.RecordBatch.from_arrays([*columns, *counts], schema=schema)


def _fixed_lists(values: np.ndarray, row_length: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), row_length)
