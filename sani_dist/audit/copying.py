"""Can the model still repeat what stands in its prompt? A probe that every corpus can have.

To each control document its own words are appended once more: of some of its values what introduces them, at most `CUE_CHARACTERS` of
their line, and the value. No training saw these values (`corpus.control`), so whoever reproduces them at the end has copied them.

    Name: Ida Holm            Name: Ida Holm
    MRN: QX-104       ->      MRN: QX-104
    She is well.              She is well.
                              Name: Ida Holm
                              MRN: QX-104
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from sani_dist.audit.spans import Corpus
from sani_dist.corpus.encode import Encoded, TokenSpan, encode
from sani_dist.corpus.pack import pack
from sani_dist.corpus.rows import IGNORE, SENSITIVE, Batch, empty_batch
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.tables import StoredSpan

# Of a document, each of another kind.
MOST_VALUES = 4
CUE_CHARACTERS = 40
_COLUMNS = ("document", "kind", "row", "first", "end")


@dataclass(frozen=True)
class Repeat:
    """A value of a text, [start, stop) of it, and where it stands again: [again, again + stop - start), all in code points."""

    kind: str
    start: int
    stop: int
    again: int


class CopyingRows:
    """Control documents with their values repeated, as packed rows held in memory. Every rank makes the same.

    spans: document, kind, row, first, end (tokens) of each repeated value; they alone are targets.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, spans: pd.DataFrame, row_length: int, *, most: int, seed: int
    ) -> None:  # fmt: skip
        """`spans`: as `Corpus.spans` gives them. `most`: documents, drawn at random. Of a document that is longer than a row its end
        counts, and of its values those that stand there."""
        self.row_length = row_length
        encoded = _encoded(corpus, tokenizer, spans[(spans["split"] == "control") & ~spans["in_context"]], most, seed)
        left = (_last(document, row_length) for document in encoded)
        self._rows = list(pack((document for document in left if document.spans), row_length))
        lines = [
            (piece.document, span.stored.span.kind, row, start + span.first, start + span.end)
            for row, pieces in enumerate(self._rows)
            for piece, start in _placed(pieces)
            for span in piece.spans
        ]
        self.spans = pd.DataFrame(lines, columns=_COLUMNS)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        batch = empty_batch(len(indices), self.row_length)
        for i, index in enumerate(indices):
            for piece, start in _placed(self._rows[index]):
                part = slice(start, start + len(piece.input_ids))
                batch.input_ids[i, part] = torch.from_numpy(piece.input_ids).long()
                batch.role[i, part] = torch.from_numpy(piece.role)
                batch.document[i, part] = piece.document
                batch.position[i, part] = torch.arange(len(piece.input_ids))
        return batch


def repeated(text: str, spans: Sequence[tuple[int, int, str]], draw: random.Random) -> tuple[str, list[Repeat]]:
    """`text` with some of its values repeated at its end, in the order in which they stand there, and where.

    `spans`: (start, stop, kind) in order; of each kind the first value that something introduces may be chosen. Pieces are joined by a
    line break where the text has one, else by a space.
    """
    cues = {(start, stop, kind): _cue(text, start) for start, stop, kind in spans}
    introduced = [span for span, cue in cues.items() if any(character.isalpha() for character in cue)]
    first_of_kind = {span[2]: span for span in reversed(introduced)}
    chosen = draw.sample(sorted(first_of_kind), min(MOST_VALUES, len(first_of_kind)))
    joint = "\n" if "\n" in text else " "
    longer, repeats = text.rstrip(), []
    for start, stop, kind in sorted(first_of_kind[kind] for kind in chosen):
        longer += joint + cues[start, stop, kind]
        repeats.append(Repeat(kind, start, stop, len(longer)))
        longer += text[start:stop] + _punctuation(text[stop : stop + 1])
    return longer, repeats


def _cue(text: str, start: int) -> str:
    """What introduces the value at `start`: the end of its line before it, from a word on. If that says nothing, the line before too."""
    before = text[max(0, start - CUE_CHARACTERS) : start]
    if start > CUE_CHARACTERS and not text[start - CUE_CHARACTERS - 1].isspace():
        before = before[before.find(" ") + 1 :]
    line = before.rpartition("\n")[2]
    return line if any(character.isalpha() for character in line) else before.lstrip()


def _punctuation(after: str) -> str:
    return "" if after.isalnum() or after.isspace() else after


def _encoded(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, spans: pd.DataFrame, most: int, seed: int
) -> Iterator[Encoded]:
    """The documents with their repeats; audited spans come in pairs, the value and its repeat, with ids 2 n and 2 n + 1."""
    documents = sorted(map(int, spans["document"].unique()))
    wanted = set(random.Random(seed).sample(documents, min(most, len(documents))))
    of_document = {int(number): lines.sort_values("start") for number, lines in spans.groupby("document")}  # type: ignore[arg-type]
    for number, text in corpus.texts(wanted):
        lines = of_document[number]
        places = list(zip(lines["start"], lines["stop"], lines["kind"], strict=True))
        longer, repeats = repeated(text, places, random.Random(f"{seed} {number}"))
        pairs = [
            StoredSpan(2 * i + again, number, Span(at, at + r.stop - r.start, r.kind, "direct", ""), "")
            for i, r in enumerate(repeats)
            for again, at in enumerate((r.start, r.again))
        ]
        yield from encode(tokenizer, [Document(number, None, longer, "control")], [[]], [pairs])


def _last(encoded: Encoded, row_length: int) -> Encoded:
    """The last tokens of a document, as many as fit a row, and the repeats of which the value stands there too; they are its targets."""
    start = max(0, len(encoded.input_ids) - row_length)
    seen = {span.stored.span_id for span in encoded.spans if span.first >= start}
    spans = tuple(
        TokenSpan(span.stored, span.first - start, span.end - start)
        for span in encoded.spans
        if span.stored.span_id % 2 and span.stored.span_id - 1 in seen and span.first > start
    )
    ids = encoded.input_ids[start:]
    role = np.full(len(ids), IGNORE, np.uint8)
    for span in spans:
        role[span.first : span.end] = SENSITIVE
    return Encoded(encoded.document, ids, role, spans)


def _placed(pieces: Sequence[Encoded]) -> Iterator[tuple[Encoded, int]]:
    """Each piece of a row, and where it begins."""
    start = 0
    for piece in pieces:
        yield piece, start
        start += len(piece.input_ids)
