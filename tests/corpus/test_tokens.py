"""Roles by offsets, pieces, packing, memory-mapped rows, and the shift of labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sani_dist.corpus.encode import Encoded, TokenSpan, _token_spans, check_tokenizer, encode, pieces
from sani_dist.corpus.pack import pack, write_rows
from sani_dist.corpus.rows import IGNORE, LEARN, SENSITIVE, Batch, PackedRows, empty_batch, targets
from sani_dist.corpus.span import Document, Span, trimmed
from sani_dist.corpus.tables import StoredSpan
from sani_dist.errors import InputError

from .conftest import byte_level_tokenizer

TOKENIZERS = {trim: byte_level_tokenizer(trim) for trim in (True, False)}
STORED = StoredSpan(7, 0, Span(0, 1, "A", "direct", "x"), "00")


def spans_of(*ranges: tuple[int, int]) -> list[Span]:
    return [Span(start, end, "A", "direct", "x") for start, end in ranges]


def encoded(size: int, document: int = 0, spans: tuple[tuple[int, int], ...] = ()) -> Encoded:
    role = np.full(size, LEARN, np.uint8)
    role[0] = IGNORE
    found = tuple(TokenSpan(STORED, first, end) for first, end in spans)
    return Encoded(document, np.arange(size, dtype=np.int32), role, found)


@given(
    st.text(st.sampled_from("ab  \n Smith.é😀漢e\u0301"), min_size=1, max_size=30),
    st.data(),
    st.booleans(),
)
def test_every_token_with_a_sensitive_byte_is_sensitive(text, data, trim):
    """The tokens of byte-level BPE are the bytes of the text in order: that gives the truth without offsets."""
    start = data.draw(st.integers(0, len(text) - 1))
    start, end = trimmed(text, start, data.draw(st.integers(start + 1, len(text))))  # as every detector's spans are
    assume(start < end)
    tokenizer = TOKENIZERS[trim]
    (result,) = encode(tokenizer, [Document(0, None, text, "repair")], [spans_of((start, end))], [[]])
    # A character that is several tokens is sensitive in all of them, and so are bytes: one token is some bytes.
    first_byte, end_byte = len(text[:start].encode()), len(text[:end].encode())
    position = 0
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(result.input_ids.tolist())):
        size = len(token)  # each character of a byte-level token stands for one byte
        overlaps = position < end_byte and position + size > first_byte
        if i > 0 and overlaps:
            assert result.role[i] == SENSITIVE
        elif i > 0:
            assert result.role[i] == LEARN or not _starts_and_ends_on_characters(text, position, position + size)
        position += size
    assert position == len(text.encode())
    assert result.role[0] == IGNORE


def _starts_and_ends_on_characters(text: str, first: int, end: int) -> bool:
    edges = {len(text[:i].encode()) for i in range(len(text) + 1)}
    return first in edges and end in edges


def test_leading_space_and_emoji():
    text = "was John 😀 here"
    tokenizer = TOKENIZERS[True]
    stored = StoredSpan(1, 0, Span(4, 10, "A", "direct", "x"), "00")
    (result,) = encode(tokenizer, [Document(0, None, text, "repair")], [spans_of((4, 10))], [[stored]])
    (span,) = result.spans
    assert tokenizer.decode(result.input_ids[span.first : span.end]) == " John 😀"
    assert (result.role == SENSITIVE).nonzero()[0].tolist() == list(range(span.first, span.end))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=12),
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=6),
)
def test_the_tokens_of_many_spans_are_those_of_each(tokens, ranges):
    starts, ends, at = [], [], 0
    for back, size, _ in tokens:
        starts.append(max(0, at - back))
        at += size
        ends.append(at)
    special = np.array([hidden for *_, hidden in tokens], bool)
    audited = [
        StoredSpan(i, 0, Span(start, start + size, "A", "direct", "x"), "00") for i, (start, size) in enumerate(ranges)
    ]
    expected = []
    for stored in audited:
        covered = [
            i
            for i, (start, end) in enumerate(zip(starts, ends, strict=True))
            if start < stored.span.end and end > stored.span.start and not special[i]
        ]
        if covered:
            expected.append(TokenSpan(stored, covered[0], covered[-1] + 1))
    assert list(_token_spans(audited, np.array(starts, np.int64), np.array(ends, np.int64), special)) == expected


def test_slow_tokenizers_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="slow one without offsets"):
        check_tokenizer(Slow())


@given(st.integers(1, 200), st.integers(16, 40), st.data())
def test_pieces_score_each_target_once_and_keep_spans_whole(size, row_length, data):
    spans: list[tuple[int, int]] = []
    for _ in range(data.draw(st.integers(0, 4))):
        first = data.draw(st.integers(0, size - 1))
        spans.append((first, min(size, first + data.draw(st.integers(1, 12)))))
    document = encoded(size, spans=tuple(sorted(spans)))
    cut = pieces(document, row_length)
    assert all(0 < len(piece.input_ids) <= row_length and piece.role[0] == IGNORE for piece in cut)
    scored = [int(token) for piece in cut for token in piece.input_ids[piece.role == LEARN]]
    assert scored == list(range(1, size))
    kept = [(int(p.input_ids[s.first]), int(p.input_ids[s.end - 1]) + 1) for p in cut for s in p.spans]
    if len(spans) <= 1:  # overlapping spans may be too long together for a piece
        assert kept == [span for span in spans if span[0] > 0]
    assert all(s.first >= 1 for p in cut for s in p.spans)


@settings(deadline=None)  # the first call imports torch
@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 6))
def test_packing_keeps_every_token_once(tmp_path_factory, sizes, open_rows):
    row_length = 16
    documents = [encoded(size, i) for i, size in enumerate(sizes)]
    cut = [piece for document in documents for piece in pieces(document, row_length)]
    path = tmp_path_factory.mktemp("rows") / "repair.arrow"
    packed = list(write_rows(path, pack(cut, row_length, open_rows), row_length, padding=9))
    assert sorted(id(piece) for row in packed for piece in row) == sorted(map(id, cut))
    for row in packed:
        assert sum(len(piece.input_ids) for piece in row) <= row_length
        assert len({piece.document for piece in row}) == len(row)
    rows = PackedRows(path)
    assert len(rows) == len(packed) == len(rows.learnable)
    assert rows.learnable.sum() == sum(size - 1 for size in sizes)
    if packed:
        batch = rows.batch(range(len(rows)))
        index, following, _, _ = targets(batch)
        document = batch.document.flatten()[index].tolist()
        assert sorted(zip(document, following.tolist(), strict=True)) == [
            (i, token) for i, size in enumerate(sizes) for token in range(1, size)
        ]
        padding = batch.document == -1
        assert (batch.input_ids[padding] == 9).all()
        assert (batch.role[padding] == IGNORE).all()


def test_best_fit_takes_the_fullest_row():
    rows = list(pack([encoded(10, 0), encoded(12, 1), encoded(4, 2), encoded(6, 3)], 16))
    assert [[piece.document for piece in row] for row in rows] == [[1, 2], [0, 3]]


def test_rows_are_found_across_record_batches(tmp_path):
    cut = [encoded(16, i) for i in range(600)]
    assert len(list(write_rows(tmp_path / "x.arrow", pack(cut, 16), 16, 0))) == 600
    rows = PackedRows(tmp_path / "x.arrow")
    assert rows.row_length == 16
    batch = rows.batch([599, 0, 256, 255])
    assert batch.document[:, 0].tolist() == [599, 0, 256, 255]
    assert [t.dtype for t in (batch.input_ids, batch.role, batch.document, batch.position)] == [
        torch.int64,
        torch.uint8,
        torch.int64,
        torch.int64,
    ]
    with pytest.raises(IndexError):
        rows.batch([600])


def test_targets_shift_within_a_document():
    batch = Batch(
        input_ids=torch.tensor([[5, 6, 7, 8, 9, 0], [1, 2, 3, 4, 0, 0]]),
        role=torch.tensor([[0, 1, 2, 1, 1, 0], [0, 2, 1, 1, 0, 0]], dtype=torch.uint8),
        document=torch.tensor([[0, 0, 0, 1, 1, -1], [2, 2, 2, 2, -1, -1]]),
        position=torch.zeros((2, 6), dtype=torch.int64),
    )
    rows, wanted, roles, weights = targets(batch)
    assert (rows.tolist(), wanted.tolist(), roles.tolist(), weights) == ([0, 3, 7, 8], [6, 9, 3, 4], [1] * 4, None)
    rows, wanted, roles, _ = targets(batch, (LEARN, SENSITIVE))
    assert (rows.tolist(), roles.tolist()) == ([0, 1, 3, 6, 7, 8], [1, 2, 1, 2, 1, 1])
    assert (rows.dtype, wanted.dtype, roles.dtype) == (torch.int64, torch.int64, torch.uint8)


def test_an_empty_batch_has_no_targets():
    batch = empty_batch(2, 16)
    assert batch.input_ids.shape == (2, 16)
    assert len(targets(batch, (LEARN, SENSITIVE))[0]) == 0
