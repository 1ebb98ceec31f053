"""From text and spans to tokens and roles, by offsets, in pieces that fit a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sani_dist.corpus.align import aligner
from sani_dist.corpus.rows import IGNORE, LEARN, SENSITIVE
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.tables import StoredSpan
from sani_dist.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = Any  # what a tokenizer returns for a batch: a mapping of lists


class TokenSpan(NamedTuple):
    """An audited span as tokens [first, end) of a document or of a piece."""

    stored: StoredSpan
    first: int
    end: int


@dataclass(frozen=True)
class Encoded:
    """The tokens of one document: input_ids int32 [tokens], role uint8 [tokens], and where its audited spans are."""

    document: int
    input_ids: np.ndarray
    role: np.ndarray
    spans: tuple[TokenSpan, ...]


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `InputError` for a tokenizer that cannot say which characters a token came from."""
    if not tokenizer.is_fast:
        raise InputError(
            "model.path: its tokenizer is a slow one without offsets; save it with tokenizer.json (AutoTokenizer)"
        )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    sensitive: Sequence[Sequence[Span]],
    audited: Sequence[Sequence[StoredSpan]],
) -> list[Encoded]:
    """Tokenize documents and give each token its role; `sensitive` spans of a document are disjoint and in order.

    An audited span that covers no token is left out of `Encoded.spans`. Raises `InputError` for a text with such spans of which the
    tokenizer's offsets are wrong and cannot be mended.
    """
    tokens: Tokens = tokenizer(
        [document.text for document in documents],
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # no warning about texts longer than the model's context: they are cut into pieces
    )
    encoded = []
    for i, document in enumerate(documents):
        ids = np.asarray(tokens["input_ids"][i], np.int32)
        special = np.asarray(tokens["special_tokens_mask"][i], bool)
        starts, ends = _extents(_offsets(tokenizer, document, tokens, i, bool(sensitive[i] or audited[i])), special)
        first = _doubled_start(tokenizer, ids)
        ids, special, starts, ends = ids[first:], special[first:], starts[first:], ends[first:]
        role = np.where(_overlaps(starts, ends, sensitive[i]), SENSITIVE, LEARN).astype(np.uint8)
        role[special] = IGNORE
        role[:1] = IGNORE
        spans = (_token_span(stored, starts, ends, special) for stored in audited[i])
        encoded.append(Encoded(document.id, ids, role, tuple(span for span in spans if span is not None)))
    return encoded


def pieces(encoded: Encoded, row_length: int) -> list[Encoded]:
    """Cut a document into pieces of at most `row_length` tokens, so that each of its targets is scored once.

    Every piece but the first begins with up to row_length // 4 tokens of context, whose role is IGNORE. A cut inside an
    audited span moves before it, unless the span is too long for a piece. Spans that no piece can score are left out:
    those that are too long, and those that begin with the first token of the document, which nothing predicts.
    """
    context = row_length // 4
    size = len(encoded.input_ids)
    cut_pieces = []
    scored = 0  # tokens before this one are targets of the pieces so far
    while scored < size:
        start = max(0, scored - context)
        cut = min(size, start + row_length)
        if cut < size:
            cut = _cut_before_spans(encoded.spans, scored, cut)
        role = encoded.role[start:cut].copy()
        role[: scored - start] = IGNORE
        spans = tuple(
            TokenSpan(span.stored, span.first - start, span.end - start)
            for span in encoded.spans
            if max(scored, 1) <= span.first and span.end <= cut
        )
        cut_pieces.append(Encoded(encoded.document, encoded.input_ids[start:cut], role, spans))
        scored = cut
    return cut_pieces


def _offsets(tokenizer: PreTrainedTokenizerBase, document: Document, tokens: Tokens, i: int, asked: bool) -> np.ndarray:
    """Where the tokens of a document came from, int64 [tokens, 2]; verified if it is `asked` which of them are of a span."""
    offsets = tokens["offset_mapping"][i]
    if not asked:
        return np.asarray(offsets, np.int64).reshape(-1, 2)
    try:
        return aligner(tokenizer).offsets(
            document.text, tokens["input_ids"][i], offsets, tokens["special_tokens_mask"][i]
        )
    except InputError as error:
        raise InputError(f"document {document.id}, of {document.split}: {error}") from None


def _extents(offsets: np.ndarray, special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends, int64 [tokens], that leave no character between two tokens to nobody.

    Byte-level tokenizers may trim the space that a token begins with out of its offsets, down to an empty range for a
    token that is nothing but a space: each token therefore reaches back to where the one before ended. The parts of a
    character that is several tokens all have the whole of it.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    reached = np.maximum.accumulate(np.concatenate([[0], np.where(special, 0, ends)[:-1]])) if len(ends) else ends
    return np.minimum(starts, reached), ends


def _overlaps(starts: np.ndarray, ends: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Whether each token overlaps one of the spans, which are disjoint and in order: bool [tokens]."""
    if not spans:
        return np.zeros(len(starts), bool)
    span_starts = np.array([span.start for span in spans])
    span_ends = np.array([span.end for span in spans])
    candidate = np.searchsorted(span_ends, starts, side="right")  # the first span that ends after the token starts
    return (candidate < len(spans)) & (span_starts[np.minimum(candidate, len(spans) - 1)] < ends)


def _token_span(stored: StoredSpan, starts: np.ndarray, ends: np.ndarray, special: np.ndarray) -> TokenSpan | None:
    covered = np.flatnonzero((starts < stored.span.end) & (ends > stored.span.start) & ~special)
    return TokenSpan(stored, int(covered[0]), int(covered[-1]) + 1) if len(covered) else None


def _cut_before_spans(spans: Sequence[TokenSpan], scored: int, cut: int) -> int:
    """Move `cut` before the spans it would divide, as long as the piece still scores something."""
    moved = True
    while moved:
        moved = False
        for span in spans:
            if max(scored, 1) < span.first < cut < span.end:
                cut, moved = span.first, True
    return cut


def _doubled_start(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> int:
    """Return how many tokens to drop: a chat template writes the start token, and the tokenizer adds it again."""
    start = tokenizer.bos_token_id
    return int(start is not None and len(ids) > 1 and ids[0] == start and ids[1] == start)
