"""The stage `prepare`: corpus to spans, spans to tokens, tokens to rows that training and auditing map into memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from sani_dist.config import CorpusSettings, RepairSettings
from sani_dist.corpus.detect import AUDITED, Detection, Report, detect_spans
from sani_dist.corpus.encode import Encoded, check_tokenizer, encode, pieces
from sani_dist.corpus.fold import value_key
from sani_dist.corpus.pack import pack, write_rows
from sani_dist.corpus.rows import LEARN, SENSITIVE
from sani_dist.corpus.span import SPLITS, Document, Split, value_id
from sani_dist.corpus.surrogates import Surrogates
from sani_dist.corpus.tables import TOKEN_SPANS, SpanReader, StoredSpan, TableWriter, read_documents


def prepare(
    settings: CorpusSettings,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    key: bytes,
    report: Report | None = None,
    repair: RepairSettings = RepairSettings(),  # noqa: B008 (settings are fixed once made)
    *,
    alone: bool = False,
) -> dict[str, Any]:
    """Write `run/corpus` and `run/tokens` and return the summary, which has counts and kinds, never values.

    corpus/  documents.parquet, spans.parquet, labelled.parquet (if the corpus has labels), summary.json
    tokens/  epoch-000/{split}.arrow for each split that has documents (`PackedRows` reads it), token_spans.parquet;
             epoch-NNN/repair.arrow for each epoch of `repair` whose text has surrogates
    key: keys the hashes of values. alone: no two documents share a row.
    report: called with the documents done and their total (None while it is unknown).

    The same input gives the same files. Raises `InputError`, in one line, for settings and input that cannot work.
    """
    check_tokenizer(tokenizer)
    texts = [text for text in repair.text_of_epochs if text]
    detection = detect_spans(settings, tokenizer, run, key, report, passes_after=1 + len(texts))
    folder = run / "tokens" / "epoch-000"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    done, total = 2 * detection.documents.total(), (3 + len(texts)) * detection.documents.total()
    tokens: dict[str, Any] = {}
    with TableWriter(folder / "token_spans.parquet", TOKEN_SPANS) as token_spans:
        for split in SPLITS:
            if detection.documents[split]:
                tokens[split] = _write_split(split, settings.row_length, tokenizer, run, detection, token_spans, alone)
                done += detection.documents[split]
                if report is not None:
                    report(done, total)
    summary = {**detection.summary(), "tokens": tokens}
    if repair.objectives.surrogate is not None:
        surrogates = Surrogates(repair.objectives.surrogate, repair.seed, _values_of_the_corpus(run / "corpus", key))
        for text in texts:
            _write_surrogates(text, settings.row_length, tokenizer, run, surrogates, alone)
            done += detection.documents.total()
            if report is not None:
                report(done, total)
        summary["surrogates"] = {"replaced": dict(surrogates.replaced), "kept": dict(surrogates.kept)}
    path = run / "corpus" / "summary.json"
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return summary


def _write_split(
    split: Split,
    row_length: int,
    tokenizer: PreTrainedTokenizerBase,
    run: Path,
    detection: Detection,
    token_spans: TableWriter,
    alone: bool,
) -> dict[str, Any]:
    """Write the rows of one split and its lines of token_spans, and return what was counted."""
    counts: Counter[str] = Counter()
    encoded = _encoded(split, tokenizer, run, detection, counts)
    rows = pack((piece for document in encoded for piece in pieces(document, row_length)), row_length, alone=alone)
    path = run / "tokens" / "epoch-000" / f"{split}.arrow"
    for number, row in enumerate(write_rows(path, rows, row_length, _padding(tokenizer))):
        start = 0
        for piece in row:
            counts["learnable"] += int((piece.role == LEARN).sum())
            counts["sensitive"] += int((piece.role == SENSITIVE).sum())
            for span in piece.spans:
                counts["scored"] += 1
                token_spans.write(
                    {
                        "span_id": span.stored.span_id,
                        "split": split,
                        "row": number,
                        "first": start + span.first,
                        "end": start + span.end,
                        "kind": span.stored.span.kind,
                        "class": span.stored.span.sensitivity,
                        "value_id": span.stored.value_id,
                    }
                )
            start += len(piece.input_ids)
        counts["rows"] += 1
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


def _write_surrogates(
    text: int, row_length: int, tokenizer: PreTrainedTokenizerBase, run: Path, surrogates: Surrogates, alone: bool
) -> None:
    """Write the rows of the repair text with surrogates: tokens to learn, but for the spans that stayed."""
    folder = run / "tokens" / f"epoch-{text:03d}"
    folder.mkdir(mode=0o700, exist_ok=True)

    def encoded() -> Iterator[Encoded]:
        found = SpanReader(run / "corpus" / "spans.parquet")
        for batch in read_documents(run / "corpus" / "documents.parquet"):
            documents = [document for document in batch if document.split == "repair"]
            replaced = [surrogates.replace(d, [s.span for s in found.of(d.id)], text) for d in documents]
            if replaced:
                nothing: list[list[StoredSpan]] = [[] for _ in replaced]
                yield from encode(tokenizer, [d for d, _ in replaced], [stayed for _, stayed in replaced], nothing)

    rows = pack((piece for document in encoded() for piece in pieces(document, row_length)), row_length, alone=alone)
    for _ in write_rows(folder / "repair.arrow", rows, row_length, _padding(tokenizer)):
        pass


def _values_of_the_corpus(corpus: Path, key: bytes) -> Callable[[str], bool]:
    """Whether a value is one of those found or labelled, of whatever kind and in whatever split. Holds their hashes."""
    tables = [corpus / name for name in ("spans.parquet", "labelled.parquet")]
    columns = [pq.read_table(path, columns=["kind", "value_id"]) for path in tables if path.exists()]
    kinds, taken = ({value for table in columns for value in table[name].to_pylist()} for name in ("kind", "value_id"))
    return lambda value: any(value_id(key, kind, value) in taken for kind in kinds)


def _encoded(
    split: Split, tokenizer: PreTrainedTokenizerBase, run: Path, detection: Detection, counts: Counter[str]
) -> Iterator[Encoded]:
    """Yield the encoded documents of one split."""
    corpus = run / "corpus"
    found = SpanReader(corpus / "spans.parquet")
    labelled = SpanReader(corpus / "labelled.parquet") if detection.audited(split) == "labelled" else None
    for batch in read_documents(corpus / "documents.parquet"):
        documents = [document for document in batch if document.split == split]
        if not documents:
            continue
        sensitive = [found.of(document.id) for document in documents]
        audited: list[list[StoredSpan]] = [[] for _ in documents]
        if split in AUDITED:
            audited = [labelled.of(document.id) for document in documents] if labelled is not None else sensitive
        if split == "control":
            untrained = [
                [stored for stored in spans if _value(document, stored) not in detection.trained_controls]
                for document, spans in zip(documents, audited, strict=True)
            ]
            counts["also_trained"] += sum(map(len, audited)) - sum(map(len, untrained))
            audited = untrained
        counts["audited"] += sum(map(len, audited))
        for document in encode(
            tokenizer, documents, [[stored.span for stored in spans] for spans in sensitive], audited
        ):
            counts["encoded"] += len(document.spans)
            yield document


def _value(document: Document, stored: StoredSpan) -> str:
    return value_key(document.text[stored.span.start : stored.span.end])


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
