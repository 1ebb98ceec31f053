"""The stage `prepare`: corpus to spans, spans to tokens, tokens to rows that training and auditing map into memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from sani_dist.config import CorpusSettings, RepairSettings
from sani_dist.corpus.detect import AUDITED, Detection, Report, detect_spans
from sani_dist.corpus.documents import folders_said
from sani_dist.corpus.encode import Encoded, check_tokenizer, encode, pieces
from sani_dist.corpus.executor import Executor
from sani_dist.corpus.fold import value_key
from sani_dist.corpus.pack import pack, write_rows
from sani_dist.corpus.read import read_records
from sani_dist.corpus.rows import LEARN, SENSITIVE
from sani_dist.corpus.span import SPLITS, Document, Split, value_id
from sani_dist.corpus.surrogates import Surrogates
from sani_dist.corpus.tables import TOKEN_SPANS, DocumentReader, SpanReader, StoredSpan, TableWriter
from sani_dist.errors import InputError
from sani_dist.messages import column

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare(
    settings: CorpusSettings,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    key: bytes,
    report: Report | None = None,
    repair: RepairSettings = RepairSettings(),  # noqa: B008 (settings are fixed once made)
    *,
    alone: bool = False,
    executor: Executor = map,
) -> dict[str, Any]:
    """Write `run/corpus` and `run/tokens` and return the summary, which has counts and kinds, never values.

    corpus/  documents.parquet, spans.parquet, labelled.parquet (if the corpus has labels), summary.json
    tokens/  epoch-000/{split}.arrow for each split that has documents (`PackedRows` reads it), token_spans.parquet;
             epoch-NNN/repair.arrow for each epoch of `repair` whose text has surrogates
    key: keys the hashes of values. alone: no two documents share a row. executor: who works on the batches of documents.
    report: called with the documents done and their total (None while it is unknown).

    The same input gives the same files, whoever works on it. Raises `InputError`, in one line, for settings and input that cannot work.
    """
    check_tokenizer(tokenizer)
    texts = [text for text in repair.text_of_epochs if text]
    detection = detect_spans(settings, tokenizer, run, key, report, passes_after=1 + len(texts), executor=executor)
    parts = [_Part(split, 0, detection.batches[split]) for split in SPLITS if detection.documents[split]]
    parts += [_Part("repair", text, detection.batches["repair"]) for text in texts]
    corpus = run / "corpus"
    work = _Encode(
        corpus, DocumentReader(corpus / "documents.parquet"), {name: SpanReader(path) for name, path in _tables(corpus)}, key,
        tokenizer, settings.row_length, repair, parts, detection,
    )  # fmt: skip
    encoded = executor(work, range(sum(len(part.batches) for part in parts)))
    done, total = 2 * detection.documents.total(), (3 + len(texts)) * detection.documents.total()
    tokens: dict[str, Any] = {}
    fates: Counter[tuple[str, str]] = Counter()
    epoch = run / "tokens" / "epoch-000"
    epoch.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TableWriter(epoch / "token_spans.parquet", TOKEN_SPANS) as token_spans:
        for part in parts:
            counts: Counter[str] = Counter()
            path = run / "tokens" / f"epoch-{part.text:03d}" / f"{part.split}.arrow"
            path.parent.mkdir(mode=0o700, exist_ok=True)
            rows = pack(_pieces(islice(encoded, len(part.batches)), counts, fates), settings.row_length, alone=alone)
            for number, row in enumerate(write_rows(path, rows, settings.row_length, _padding(tokenizer))):
                _write_spans(token_spans, part.split, number, row)
                counts["rows"] += 1
            if not part.text:
                tokens[part.split] = _summary(part.split, counts)
            done += detection.documents.total() if part.text else detection.documents[part.split]
            if report is not None:
                report(done, total)
    summary = {**detection.summary(), "tokens": tokens, "folders": folders_said(settings)}
    if repair.objectives.surrogate is not None:
        summary["surrogates"] = {
            fate: {kind: count for (other, kind), count in fates.items() if other == fate}
            for fate in ("replaced", "kept")
        }
    path = corpus / "summary.json"
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def write_plain(
    source: str, settings: CorpusSettings, tokenizer: PreTrainedTokenizerBase, path: Path, *, alone: bool = False
) -> None:
    """Write rows of text in which nothing is sensitive. alone: no two documents share a row.

    Raises `InputError`, in one line, for a source without text."""

    def encoded() -> Iterator[Encoded]:
        for number, record in enumerate(read_records(source, settings.text, tokenizer=tokenizer, lenient=True)):
            yield from encode(tokenizer, [Document(number, None, record.text, "heldout")], [[]], [[]])

    rows = pack(
        (piece for document in encoded() for piece in pieces(document, settings.row_length)),
        settings.row_length,
        alone=alone,
    )
    if not sum(1 for _ in write_rows(path, rows, settings.row_length, _padding(tokenizer))):
        raise InputError(f"{source} has no text: {column(settings.text)} is empty in every record")


@dataclass(frozen=True)
class _Part:
    """The batches that have documents of a split. `text`: 0 is the true one, others have surrogates."""

    split: Split
    text: int
    batches: range


@dataclass(frozen=True)
class _Batch:
    """What encoding returns for a batch: pieces of documents that fit a row, and what was counted."""

    pieces: list[Encoded]
    counts: Counter[str]
    fates: Counter[tuple[str, str]]  # of identifiers: (replaced or kept, kind)


@dataclass(frozen=True)
class _Encode:
    """Encode a batch of a part; the batches of all parts are numbered through."""

    corpus: Path
    documents: DocumentReader
    spans: dict[str, SpanReader]  # by table: those found, and those labelled
    key: bytes
    tokenizer: PreTrainedTokenizerBase
    row_length: int
    repair: RepairSettings
    parts: Sequence[_Part]
    detection: Detection

    @cached_property
    def _surrogates(self) -> Surrogates:
        locale = self.repair.objectives.surrogate
        assert locale is not None  # or there would be no such part
        return Surrogates(locale, self.repair.seed, values_of_the_corpus(self.corpus, self.key))

    def __call__(self, number: int) -> _Batch:
        for part in self.parts:
            if number < len(part.batches):
                break
            number -= len(part.batches)
        documents = [d for d in self.documents[part.batches[number]] if d.split == part.split]
        counts: Counter[str] = Counter()
        fates: Counter[tuple[str, str]] = Counter()
        encoded: list[Encoded] = []
        if documents and part.text:
            encoded = self._with_surrogates(part.text, documents, fates)
        elif documents:
            encoded = self._true(part.split, documents, counts)
        cut = [piece for document in encoded for piece in pieces(document, self.row_length)]
        counts["scored"] = sum(len(piece.spans) for piece in cut)
        for name, role in (("learnable", LEARN), ("sensitive", SENSITIVE)):
            counts[name] = sum(int((piece.role == role).sum()) for piece in cut)
        return _Batch(cut, counts, fates)

    def _true(self, split: Split, documents: list[Document], counts: Counter[str]) -> list[Encoded]:
        ids = [document.id for document in documents]
        sensitive = self.spans["spans"].of(ids)
        audited: list[list[StoredSpan]] = [[] for _ in documents]
        if split in AUDITED:
            table = self.detection.audited(split)
            audited = sensitive if table == "spans" else self.spans[table].of(ids)
        if split == "control":
            untrained = [
                [stored for stored in spans if _value(document, stored) not in self.detection.trained_controls]
                for document, spans in zip(documents, audited, strict=True)
            ]
            counts["also_trained"] = sum(map(len, audited)) - sum(map(len, untrained))
            audited = untrained
        counts["audited"] = sum(map(len, audited))
        encoded = encode(self.tokenizer, documents, [[stored.span for stored in spans] for spans in sensitive], audited)
        counts["encoded"] = sum(len(document.spans) for document in encoded)
        return encoded

    def _with_surrogates(self, text: int, documents: list[Document], fates: Counter[tuple[str, str]]) -> list[Encoded]:
        """Tokens to learn, but for the spans that stayed."""
        found = self.spans["spans"].of([document.id for document in documents])
        replaced = [
            self._surrogates.replace(document, [stored.span for stored in spans], text, fates)
            for document, spans in zip(documents, found, strict=True)
        ]
        nothing: list[list[StoredSpan]] = [[] for _ in replaced]
        return encode(self.tokenizer, [d for d, _ in replaced], [stayed for _, stayed in replaced], nothing)


def _pieces(batches: Iterator[_Batch], counts: Counter[str], fates: Counter[tuple[str, str]]) -> Iterator[Encoded]:
    """The pieces of all batches; what was counted in them is added to `counts` and `fates`."""
    for batch in batches:
        counts.update(batch.counts)
        fates.update(batch.fates)
        yield from batch.pieces


def _write_spans(token_spans: TableWriter, split: Split, number: int, row: list[Encoded]) -> None:
    """Write where the audited spans of a row are."""
    start = 0
    for piece in row:
        for stored, first, end in piece.spans:
            token_spans.write(
                stored.span_id, split, number, start + first, start + end, stored.span.kind, stored.span.sensitivity,
                stored.value_id,
            )  # fmt: skip
        start += len(piece.input_ids)


def _summary(split: Split, counts: Counter[str]) -> dict[str, Any]:
    scored_tokens = counts["learnable"] + counts["sensitive"]
    summary: dict[str, Any] = {
        "rows": counts["rows"],
        "learnable": counts["learnable"],
        "sensitive": counts["sensitive"],
        "sensitive_share": counts["sensitive"] / scored_tokens if scored_tokens else 0.0,
    }
    if split in AUDITED:
        summary["audited_spans"] = {
            "scored": counts["scored"],
            "without_token": counts["audited"] - counts["encoded"],
            "unscorable": counts["encoded"] - counts["scored"],  # first token of a document, or longer than a row
            "also_trained": counts["also_trained"],  # in control: values that the training text has as well
        }
    return summary


def values_of_the_corpus(corpus: Path, key: bytes) -> Callable[[str], bool]:
    """Whether a value is one of those found or labelled, of whatever kind and in whatever split. Holds their hashes, 8 bytes each."""
    kinds, hashes = set[str](), list[np.ndarray]()
    for _, path in _tables(corpus):
        table = pq.read_table(path, columns=["kind", "value_id"])
        kinds.update(table["kind"].unique().to_pylist())
        hashes += [_numbers(chunk.to_pylist()) for chunk in table["value_id"].chunks]
    taken = np.unique(np.concatenate(hashes))

    def is_taken(value: str) -> bool:
        wanted = _numbers(value_id(key, kind, value) for kind in kinds)
        at = np.searchsorted(taken, wanted)
        return bool((taken[np.minimum(at, len(taken) - 1)] == wanted).any())

    return is_taken


def _tables(corpus: Path) -> list[tuple[str, Path]]:
    """Names and files of the tables of spans that there are: those found, and those labelled."""
    return [(name, path) for name in ("spans", "labelled") if (path := corpus / f"{name}.parquet").exists()]


def _numbers(value_ids: Iterable[str]) -> np.ndarray:
    return np.array([int(value, 16) for value in value_ids], np.uint64)


def _value(document: Document, stored: StoredSpan) -> str:
    return value_key(document.text[stored.span.start : stored.span.end])


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
