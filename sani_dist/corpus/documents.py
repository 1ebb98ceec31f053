"""All documents of a run in the order of their ids, each in its split; no evaluation text is trained on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from sani_dist.config import CorpusSettings
from sani_dist.corpus.annotations import parse_spans
from sani_dist.corpus.read import Record, read_records
from sani_dist.corpus.review import is_review, read_review
from sani_dist.corpus.sources import locate, shown
from sani_dist.corpus.span import SPLITS, Document, Span, Split
from sani_dist.errors import InputError
from sani_dist.messages import column

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Every fifth document of the general text measures utility, the others are mixed into repair.
_GENERAL_TEST_EVERY = 5


def documents(settings: CorpusSettings, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Document]:
    """Yield the documents of `source`, `heldout`, `control` and `general`, numbered from 0 in this order.

    Without `source` the training part of `general` is the text of repair. General documents with the text of a
    general_test document are left out of training. Raises `InputError` for what `read_records` and `parse_spans`
    refuse, for a source without text, and for a document of heldout, control or general_test that is also trained on.
    """
    review = read_review(settings.spans)
    evaluation = _EvaluationTexts(settings, tokenizer)
    next_id = 0
    for source, split, record in _records(settings, tokenizer):
        where = f"{shown(source)}: record {record.number}"
        if split in ("repair", "general_train"):
            same = evaluation.find(record.text)
            of_general = split == "general_train" or settings.source is None
            if same is not None and same[0] == "general_test" and of_general:
                continue
            if same is not None:
                raise InputError(
                    f"{where} is also record {same[1]} of {same[0]}; an evaluation document must not be trained on"
                )
        labelled: tuple[Span, ...] | None = None
        if review is not None:
            if split in ("repair", "heldout", "control"):
                labelled = review.spans(next_id, record.text)
        elif record.spans is not None:
            labelled = parse_spans(record.spans, record.text, where)
        yield Document(next_id, record.subject, record.text, split, labelled)
        next_id += 1
    if review is not None:
        review.check_all_used()


def folders_said(settings: CorpusSettings) -> dict[str, str]:
    """For each source that is a folder, by setting: how many of its files are read, and what of it is not."""
    sources = {name: getattr(settings, name) for name in ("source", "heldout", "control", "general")}
    said = {name: locate(source).said() for name, source in sources.items() if source is not None}
    return {name: line for name, line in said.items() if line is not None}


def _records(
    settings: CorpusSettings, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[str, Split, Record]]:
    """Yield (source, split, record) of all documents."""
    parts: tuple[tuple[str | None, Split], ...] = (
        (settings.source, "repair"),
        (settings.heldout, "heldout"),
        (settings.control, "control"),
    )
    for source, split in parts:
        if source is not None:
            for record in _non_empty(settings, source, tokenizer, lenient=split != "repair"):
                yield source, split, record
    if settings.general is not None:
        train: Split = "general_train" if settings.source is not None else "repair"
        for i, record in enumerate(_non_empty(settings, settings.general, tokenizer, lenient=True), 1):
            yield settings.general, "general_test" if i % _GENERAL_TEST_EVERY == 0 else train, record


def _non_empty(
    settings: CorpusSettings, source: str, tokenizer: PreTrainedTokenizerBase | None, *, lenient: bool
) -> Iterator[Record]:
    spans = None if is_review(settings.spans) else settings.spans
    empty = True
    for record in read_records(source, settings.text, settings.subject, spans, tokenizer, lenient=lenient):
        empty = False
        yield record
    if empty:
        raise InputError(f"{shown(source)} has no text: {column(settings.text)} is empty in every record")


class _EvaluationTexts:
    """Hashes of the texts of heldout, control and general_test: 24 bytes a document."""

    def __init__(self, settings: CorpusSettings, tokenizer: PreTrainedTokenizerBase | None) -> None:
        hashes, owners, numbers = array("Q"), array("B"), array("Q")
        # The corpus itself is only trained on: not read here.
        others = settings.model_copy(update={"source": None})
        for _, split, record in _records(others, tokenizer):
            if split in ("heldout", "control", "general_test"):
                hashes.append(_hash(record.text))
                owners.append(SPLITS.index(split))
                numbers.append(record.number)
        order = np.argsort(np.asarray(hashes, np.uint64), kind="stable")
        self._hashes = np.asarray(hashes, np.uint64)[order]
        self._owners = np.asarray(owners, np.uint8)[order]
        self._numbers = np.asarray(numbers, np.uint64)[order]

    def find(self, text: str) -> tuple[Split, int] | None:
        """Return the split and the record number of the evaluation document with exactly this text, if there is one."""
        wanted = np.uint64(_hash(text))
        i = int(np.searchsorted(self._hashes, wanted))
        if i == len(self._hashes) or self._hashes[i] != wanted:
            return None
        return SPLITS[int(self._owners[i])], int(self._numbers[i])


def _hash(text: str) -> int:
    # 64 bits: two of a billion documents collide with a chance of 3 %, and then a person is asked to look.
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
