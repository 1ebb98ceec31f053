"""From text and spans to tokens and roles, by offsets, in pieces that fit a row."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sani_dist.corpus.align import aligner
from sani_dist.corpus.fold import fold, value_key
from sani_dist.corpus.rows import IGNORE, LEARN, SENSITIVE
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.tables import StoredSpan
from sani_dist.corpus.terms import TermMatcher
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
    """The tokens of one document, or of a piece of it: input_ids int32 [tokens], role uint8 [tokens], and where its audited spans are.

    earlier: int32 [tokens], of a sensitive token the place where its value was last before it, negative where it was not. None: nowhere.
    """

    document: int
    input_ids: np.ndarray
    role: np.ndarray
    spans: tuple[TokenSpan, ...]
    earlier: np.ndarray | None = None


class Tokenised(NamedTuple):
    """A text as tokens: ids int32, whether each is a special one, and the characters [starts, ends) that each stands for; all [tokens]."""

    ids: np.ndarray
    special: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


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
    needs_offsets = [bool(of_text or of_audit) for of_text, of_audit in zip(sensitive, audited, strict=True)]
    names = [
        f"document {d.id}, of {d.split}" if asked else None for d, asked in zip(documents, needs_offsets, strict=True)
    ]
    encoded = []
    for i, (ids, special, starts, ends) in enumerate(tokenise(tokenizer, [d.text for d in documents], names)):
        document = documents[i]
        span = span_of(starts, ends, sensitive[i])
        role = np.where(span >= 0, SENSITIVE, LEARN).astype(np.uint8)
        role[special] = IGNORE
        role[:1] = IGNORE
        spans = _token_spans(audited[i], starts, ends, special) if audited[i] else ()
        earlier = _earlier(span, _values_before(document.text, sensitive[i]))
        encoded.append(Encoded(document.id, ids, role, tuple(spans), earlier))
    return encoded


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], names: Sequence[str | None]) -> list[Tokenised]:
    """Tokenize texts, special tokens included.

    names: what a message calls each text whose offsets have to be right; None for one of which nobody asks where its tokens came from.
    Raises `InputError` for a text whose offsets are wrong and cannot be mended.
    """
    tokens: Tokens = tokenizer(
        list(texts),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,  # no warning about texts longer than the model's context: they are cut into pieces
    )
    found = []
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
        ids = np.asarray(tokens["input_ids"][i], np.int32)
        special = np.asarray(tokens["special_tokens_mask"][i], bool)
        starts, ends = _extents(_offsets(tokenizer, text, name, tokens, i), special)
        first = _doubled_start(tokenizer, ids)
        found.append(Tokenised(ids[first:], special[first:], starts[first:], ends[first:]))
    return found


def pieces(encoded: Encoded, row_length: int) -> list[Encoded]:
    """Cut a document into pieces of at most `row_length` tokens, so that each of its targets is scored once.

    Every piece but the first begins with up to row_length // 4 tokens of context, whose role is IGNORE. A cut inside an
    audited span moves before it, unless the span is too long for a piece. Spans that no piece can score are left out:
    those that are too long, and those that begin with the first token of the document, which nothing predicts.
    """
    context = row_length // 4
    size = len(encoded.input_ids)
    cut_pieces = []
    firsts = [span.first for span in encoded.spans]
    ordered = firsts == sorted(firsts)
    scored = 0  # tokens before this one are targets of the pieces so far
    while scored < size:
        start = max(0, scored - context)
        cut = min(size, start + row_length)
        near = encoded.spans[bisect_left(firsts, scored) : bisect_left(firsts, cut)] if ordered else encoded.spans
        if cut < size:
            cut = _cut_before_spans(near, scored, cut)
        role = encoded.role[start:cut].copy()
        role[: scored - start] = IGNORE
        spans = tuple(
            TokenSpan(span.stored, span.first - start, span.end - start)
            for span in near
            if max(scored, 1) <= span.first and span.end <= cut
        )
        earlier = None if encoded.earlier is None else encoded.earlier[start:cut] - start
        cut_pieces.append(Encoded(encoded.document, encoded.input_ids[start:cut], role, spans, earlier))
        scored = cut
    return cut_pieces


def _offsets(tokenizer: PreTrainedTokenizerBase, text: str, name: str | None, tokens: Tokens, i: int) -> np.ndarray:
    """Where the tokens of text `i` of a batch came from, int64 [tokens, 2]; verified if the text has a name."""
    offsets = tokens["offset_mapping"][i]
    if name is None:
        return np.asarray(offsets, np.int64).reshape(-1, 2)
    try:
        return aligner(tokenizer).offsets(text, tokens["input_ids"][i], offsets, tokens["special_tokens_mask"][i])
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _extents(offsets: np.ndarray, special: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends, int64 [tokens], that leave no character between two tokens to nobody.

    Byte-level tokenizers may trim the space that a token begins with out of its offsets, down to an empty range for a
    token that is nothing but a space: each token therefore reaches back to where the one before ended. The parts of a
    character that is several tokens all have the whole of it.
    """
    starts, ends = offsets[:, 0], offsets[:, 1]
    reached = np.maximum.accumulate(np.concatenate([[0], np.where(special, 0, ends)[:-1]])) if len(ends) else ends
    return np.minimum(starts, reached), ends


def span_of(starts: np.ndarray, ends: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """The first span that each token overlaps, -1 where it overlaps none; they are disjoint and in order: int64 [tokens]."""
    if not spans:
        return np.full(len(starts), -1)
    span_starts = np.array([span.start for span in spans])
    span_ends = np.array([span.end for span in spans])
    candidate = np.searchsorted(span_ends, starts, side="right")  # the first span that ends after the token starts
    overlaps = (candidate < len(spans)) & (span_starts[np.minimum(candidate, len(spans) - 1)] < ends)
    return np.where(overlaps, candidate, -1)


def _values_before(text: str, spans: Sequence[Span]) -> list[int]:
    """For each span the last one before it that has its value, whole or as a part, such as the surname of a full name; -1: none.

    Only spans are looked at: a value that is sensitive once is so wherever it stands.
    """
    keys = [value_key(text[span.start : span.end]) for span in spans]
    matcher = TermMatcher((key, key) for key in keys)
    last: dict[str, int] = {}  # of each value the last span that has it so far
    before = []
    for number, (span, key) in enumerate(zip(spans, keys, strict=True)):
        before.append(last.get(key, -1))
        last.update((found, number) for _, _, found in matcher.find(fold(text[span.start : span.end])))
    return before


def _earlier(span: np.ndarray, before: Sequence[int]) -> np.ndarray:
    """From the span of each token, and for each span the one before it: where that begins, -1 where there is none. int32 [tokens]."""
    first = np.full(len(before) + 1, -1)  # of each span its first token; the last is for tokens of no span
    places = np.flatnonzero(span >= 0)[::-1]
    first[span[places]] = places
    found: np.ndarray = first[np.array([*before, -1])[span]].astype(np.int32)
    return found


def _token_spans(
    audited: Sequence[StoredSpan], starts: np.ndarray, ends: np.ndarray, special: np.ndarray
) -> Iterator[TokenSpan]:
    """From the first token that overlaps each span to the last; a span without a token is left out."""
    tokens = np.flatnonzero(~special)
    starts, ends = starts[tokens], ends[tokens]
    # In order, so that of many spans none looks at all tokens: the first token that reaches so far, and the last that begins before.
    reached, begins = np.maximum.accumulate(ends), np.minimum.accumulate(starts[::-1])[::-1]
    firsts = np.searchsorted(reached, [stored.span.start for stored in audited], side="right").tolist()
    lasts = np.searchsorted(begins, [stored.span.end for stored in audited], side="left").tolist()
    for stored, first, end in zip(audited, firsts, lasts, strict=True):
        covered = first + np.flatnonzero((starts[first:end] < stored.span.end) & (ends[first:end] > stored.span.start))
        if len(covered):
            yield TokenSpan(stored, int(tokens[covered[0]]), int(tokens[covered[-1]]) + 1)


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
