"""What a model says where a sensitive value stands first, with other identities in the context: a reference where there is no base.

Every other identifier of a document is replaced by a surrogate of its kind and format, `CONTEXTS` times anew, and the model is asked at
the value's own tokens. Its distributions are averaged; then the true token is taken out, unless all surrogates have the same characters
there (the dash of a record number), and the others share what it had. In a document whose identifiers have no surrogates that is what
the model says there itself, without the true token.

One row asks about all values of a document: its text with surrogates, then a branch for each value, which begins where the text has come
to the value's place and sees the text before that alone (`audit/candidates.py`). So it costs little more than `CONTEXTS` forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from sani_dist.audit.candidates import branching
from sani_dist.corpus.encode import Tokenised, span_of, tokenise
from sani_dist.corpus.rows import AIM, IGNORE, NO_DOCUMENT, Batch, targets
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.surrogates import Surrogates
from sani_dist.corpus.tables import DocumentReader, SpanReader
from sani_dist.engine.zero3 import Engine
from sani_dist.kernels import Scores
from sani_dist.repair.row_cache import Place, cache_rows
from sani_dist.repair.teacher import as_kept, likeliest, without

# Contexts that are averaged over, and of each the tokens that are named, as multiples of those that are kept of the mean.
CONTEXTS, LISTED = 3, 4


@dataclass(frozen=True)
class Texts:
    """The documents of a run, and who makes surrogates for them."""

    corpus: Path
    tokenizer: PreTrainedTokenizerBase
    surrogates: Surrogates

    def of(self, documents: Sequence[int]) -> list[tuple[Document, list[Span]]]:
        """Each document with its sensitive spans; ids ascend."""
        spans = SpanReader(self.corpus / "spans.parquet").of(documents)
        found = DocumentReader(self.corpus / "documents.parquet").of(documents)
        return [(document, [stored.span for stored in of]) for document, of in zip(found, spans, strict=True)]


def predictions_among_others(
    engine: Engine, places: Sequence[Place], folder: Path, top: int, inputs_sha256: str, texts: Texts
) -> None:
    """Keep what the model, as it is now, predicts at the tokens of role AIM in `places`, unless `folder` has it.

    Every rank calls this. Raises RunError when one could not write.
    """
    engine.for_inference()
    listed = min(LISTED * top + 1, engine.model.config.get_text_config().vocab_size)

    def compute(batch: Batch) -> torch.Tensor:
        index, target, _, _ = targets(batch, (AIM,))
        asked = _Row(batch, (index + 1).tolist(), texts)
        said: list[Scores] = []
        for context in range(CONTEXTS):
            question, where = asked.question(context)
            with branching(engine, question):
                look = partial(likeliest, where, target, listed)
                said.append(engine.forward(question.input_ids, question.position, look))
        return as_kept(*_averaged(said, target, asked.shared, top))

    cache_rows(folder, places, inputs_sha256, compute, lambda _: {"top": top}, "predictions of another model")


class _Row:
    """A row of packed documents, some of whose tokens (`columns`, ascending) are asked about.

    shared: bool [columns], whether every surrogate has the token's characters at its place; known once all questions are made.
    """

    def __init__(self, batch: Batch, columns: list[int], texts: Texts) -> None:
        self.shared = torch.ones(len(columns), dtype=torch.bool)
        self._columns = columns
        documents = batch.document[0].numpy()
        numbers = sorted({int(documents[column]) for column in columns})
        ids = batch.input_ids[0].numpy()
        self._pieces = []
        for document, spans in texts.of(numbers):
            places = np.flatnonzero(documents == document.id)
            first, end = int(places[0]), int(places[-1]) + 1
            asked = [number for number, column in enumerate(columns) if first <= column < end]
            within = [columns[number] - first for number in asked]
            self._pieces.append((_Piece(document, spans, texts, ids[first:end], within, len(ids)), asked))

    def question(self, context: int) -> tuple[Batch, torch.Tensor]:
        """Rows, one for each document, and where in them, flattened, each column is predicted."""
        made = [piece.question(context) for piece, _ in self._pieces]
        length = max([1, *(len(m.ids) for m in made)])
        shape = (max(1, len(made)), length)
        ids, position = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        document = np.full(shape, NO_DOCUMENT, np.int64)
        where = np.zeros(len(self._columns), np.int64)
        for row, (m, (_, asked)) in enumerate(zip(made, self._pieces, strict=True)):
            used = slice(0, len(m.ids))
            ids[row, used], position[row, used], document[row, used] = m.ids, m.position, 0
            where[asked] = row * length + m.where
            self.shared[asked] &= torch.from_numpy(m.shared)
        batch = Batch(
            torch.from_numpy(ids), torch.full(shape, IGNORE, dtype=torch.uint8), torch.from_numpy(document), torch.from_numpy(position)
        )  # fmt: skip
        return batch, torch.from_numpy(where)


@dataclass(frozen=True)
class _Question:
    """ids, position: int64 [tokens]. where: int64 [asked], the tokens that predict what is asked. shared: bool [asked]."""

    ids: np.ndarray
    position: np.ndarray
    where: np.ndarray
    shared: np.ndarray


class _Piece:
    """A piece of a document, some of whose tokens (`asked`, places in the piece, ascending) are asked about."""

    def __init__(
        self, document: Document, spans: list[Span], texts: Texts, ids: np.ndarray, asked: list[int], row_length: int
    ) -> None:  # fmt: skip
        self._document, self._spans, self._texts, self._asked = document, spans, texts, asked
        self._row_length = row_length
        (self._true,) = tokenise(texts.tokenizer, [document.text], [f"document {document.id}"])
        first = _found(self._true.ids, ids)
        self._piece = range(first, first + len(ids))
        self._span = span_of(self._true.starts, self._true.ends, spans)

    def question(self, context: int) -> _Question:
        # Other numbers than epochs have: what is asked about is not what is learnt.
        made = self._texts.surrogates.of(self._document, self._spans, -1 - context)
        text, starts = _with_surrogates(self._document.text, self._spans, made)
        (other,) = tokenise(self._texts.tokenizer, [text], [f"document {self._document.id}, with other identities"])
        branches = self._branches(other, self._window(other, starts, made), starts)
        if not all(branch.fits(self._asked_tokens, self._row_length) for branch in branches):
            # The surrogates are longer, or nothing is left before a value: the text as it is.
            made, starts = [None] * len(made), [span.start for span in self._spans]
            branches = self._branches(self._true, self._piece.start, starts)
        return self._laid_out(branches, made)

    @property
    def _asked_tokens(self) -> set[int]:
        """As tokens of the document."""
        return {self._piece.start + place for place in self._asked}

    def _branches(self, other: Tokenised, window: int, starts: list[int]) -> list[_Branch]:
        """One for each value that is asked about, the last in the text first. `window`: the token of `other` that begins the piece."""
        found = []
        for span in sorted({int(self._span[token]) for token in self._asked_tokens}, reverse=True):
            tokens = [int(token) for token in np.flatnonzero(self._span == span) if token in self._piece]
            # A token may begin before the value does: so many characters earlier ends what stands before it.
            lead = max(0, self._spans[span].start - int(self._true.starts[tokens[0]]))
            reached = (other.ends > starts[span] - lead) & ~other.special
            reached[:window] = False
            stop = int(reached.argmax()) if reached.any() else len(other.ids)
            found.append(_Branch(span, tokens, other.ids[window:stop]))
        return found

    def _laid_out(self, branches: list[_Branch], made: Sequence[str | None]) -> _Question:
        """The longest text before a value, then the branches: a branch begins where the position falls, so they come in falling order."""
        ids = [max((branch.before for branch in branches), key=len)]
        position = [np.arange(len(ids[0]))]
        where, shared, used = dict[int, int](), dict[int, bool](), len(ids[0])
        for branch in branches:
            last = branch.before[-1:]
            ids.append(np.concatenate([last, self._true.ids[branch.tokens]]))
            position.append(len(branch.before) - len(last) + np.arange(len(ids[-1])))
            for number, token in enumerate(branch.tokens):
                where[token - self._piece.start] = used + len(last) + number - 1
                shared[token - self._piece.start] = self._is_shared(token, self._spans[branch.span], made[branch.span])
            used += len(ids[-1])
        return _Question(
            np.concatenate(ids).astype(np.int64), np.concatenate(position),
            np.array([where[place] for place in self._asked]), np.array([shared[place] for place in self._asked]),
        )  # fmt: skip

    def _window(self, other: Tokenised, starts: list[int], made: Sequence[str | None]) -> int:
        """The first token of the text with surrogates that belongs to the piece."""
        if self._piece.start == 0:
            return 0
        character = int(self._true.starts[self._piece.start])
        before = [number for number, span in enumerate(self._spans) if span.start <= character]
        if before:
            last = self._spans[before[-1]]
            surrogate = made[before[-1]]
            size = last.end - last.start if surrogate is None else len(surrogate)
            character = starts[before[-1]] + (0 if character < last.end else size + character - last.end)
        return int(((other.starts >= character) & ~other.special).argmax())

    def _is_shared(self, token: int, span: Span, surrogate: str | None) -> bool:
        """Whether the surrogate is as long as the value and has the token's characters where the value has them."""
        value = self._document.text[span.start : span.end]
        first, end = (max(0, int(edge[token]) - span.start) for edge in (self._true.starts, self._true.ends))
        return surrogate is not None and len(surrogate) == len(value) and surrogate[first:end] == value[first:end]


@dataclass(frozen=True)
class _Branch:
    """A value, number `span` of its document: its tokens, and the ids of the text before it."""

    span: int
    tokens: list[int]
    before: np.ndarray

    def fits(self, asked: set[int], row_length: int) -> bool:
        """Whether its first token is predicted from something, if it is asked about, and no position is beyond those of a row."""
        return (len(self.before) > 0 or self.tokens[0] not in asked) and len(self.before) + len(
            self.tokens
        ) <= row_length


def _with_surrogates(text: str, spans: Sequence[Span], made: Sequence[str | None]) -> tuple[str, list[int]]:
    """The text with surrogates, where there are any, and where each span begins in it."""
    replaced, starts, done = "", [], 0
    for span, surrogate in zip(spans, made, strict=True):
        replaced += text[done : span.start]
        starts.append(len(replaced))
        replaced += text[span.start : span.end] if surrogate is None else surrogate
        done = span.end
    return replaced + text[done:], starts


def _found(whole: np.ndarray, part: np.ndarray) -> int:
    """Where a piece of a document's tokens begins."""
    starts = np.flatnonzero(whole[: len(whole) - len(part) + 1] == part[0])
    return next(int(start) for start in starts if np.array_equal(whole[start : start + len(part)], part))


def _averaged(
    said: Sequence[Scores], target: torch.Tensor, shared: torch.Tensor, top: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean of distributions that are known at their likeliest tokens, at its own `top` likeliest. Without the token `target`, whose
    probability the others share, but where it is `shared`. A token counts with nothing where a list does not name it."""
    lists = [(s.top_ids, s.top_logprob) for s in said]
    ids, by_id = torch.cat([i for i, _ in lists if i is not None], dim=1).cpu().sort(dim=1, stable=True)
    p = torch.cat([p for _, p in lists if p is not None], dim=1).double().cpu().exp().gather(1, by_id) / len(said)
    summed = p.clone()
    # No list names a token twice, so at most as many neighbours as there are lists are the same.
    for shift in range(1, len(said)):
        summed[:, :-shift] += torch.where(ids[:, :-shift] == ids[:, shift:], p[:, shift:], 0.0)
    summed[:, 1:][ids[:, 1:] == ids[:, :-1]] = 0
    best = summed.topk(top + 1, dim=1)
    ids, logprob = ids.gather(1, best.indices), best.values.clamp(min=torch.finfo(torch.float64).tiny).log()
    of_target = torch.stack([s.logprob.double().cpu() for s in said]).logsumexp(dim=0) - math.log(len(said))
    blind_ids, blind = without(target.cpu(), of_target.clamp(max=0), ids, logprob)
    kept = shared.unsqueeze(1)
    return torch.where(kept, ids[:, :top], blind_ids), torch.where(kept, logprob[:, :top], blind)
