"""Everything sensitive in the corpus, in three passes over it: write the documents, find, close.

read     sources -> documents.parquet, the graph of rare terms, and the words that are no names
find     each document's own findings; their values go on the blacklist
close    findings and all occurrences of blacklisted values, merged -> spans.parquet
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sani_dist.config import AnnotationsDetector, CorpusSettings, PresidioDetector, TargetSettings, TermsDetector
from sani_dist.corpus.annotations import labelled_spans
from sani_dist.corpus.closure import Blacklist, merge
from sani_dist.corpus.documents import documents
from sani_dist.corpus.fold import value_key
from sani_dist.corpus.ordinary import OrdinaryWords
from sani_dist.corpus.presidio import presidio
from sani_dist.corpus.rare_terms import RareTerms
from sani_dist.corpus.score import DetectorScore
from sani_dist.corpus.span import SPLITS, Detector, Document, Span, Split
from sani_dist.corpus.tables import DocumentWriter, SpanReader, SpanWriter, read_documents
from sani_dist.corpus.terms import TermMatcher, term_detector, terms
from sani_dist.errors import InputError

# Called with the documents done, over all passes, and how many that will be (None while it is unknown).
Report = Callable[[int, int | None], None]

# The splits whose spans the audit measures.
AUDITED: tuple[Split, ...] = ("repair", "control")
FIRST_LABELLED_ID = 2**40


@dataclass
class Detection:
    """What `detect_spans` counted; the spans themselves are in the tables."""

    documents: Counter[str] = field(default_factory=Counter)
    with_spans: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    classes: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    detectors: dict[str, Counter[str]] = field(default_factory=lambda: {split: Counter() for split in SPLITS})
    labelled: Counter[str] = field(default_factory=Counter)
    score: DetectorScore = field(default_factory=DetectorScore)
    # Folded values of control that the training text has as well: they are no control.
    trained_controls: set[str] = field(default_factory=set)

    def audited(self, split: str) -> str:
        """Return the table that the audit of a split measures: what people labelled, where they did."""
        return "labelled" if self.labelled[split] else "spans"

    def summary(self) -> dict[str, Any]:
        """Return kinds and counts by split; never values."""
        splits = [split for split in SPLITS if self.documents[split]]
        return {
            "documents": {split: self.documents[split] for split in splits},
            "documents_with_spans": {split: self.with_spans[split] for split in splits},
            "kinds": {split: dict(sorted(self.kinds[split].items())) for split in splits},
            "classes": {split: dict(sorted(self.classes[split].items())) for split in splits},
            "detectors": {split: dict(sorted(self.detectors[split].items())) for split in splits},
            "labelled": {split: self.labelled[split] for split in splits if self.labelled[split]},
            "audited": {split: self.audited(split) for split in AUDITED if self.documents[split]},
            "score": self.score.summary() if self.score.documents else None,
        }


def detect_spans(
    settings: CorpusSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    run: Path,
    key: bytes,
    report: Report | None = None,
    passes_after: int = 0,
) -> Detection:
    """Write `run/corpus/documents.parquet`, `spans.parquet` and, if there are labels, `labelled.parquet`.

    Which detectors run where: all of them on repair, heldout and control; on general text only the terms and the
    target, since the names in it are public. The blacklist of repair is closed over repair and general text, those of
    heldout and control over themselves. `key` keys the hashes of the values; `passes_after` tells `report` what the
    caller adds.

    Raises `InputError` for bad settings, bad input, and a corpus in whose repair text nothing sensitive is found.
    """
    folder = run / "corpus"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    detectors = _Detectors(settings)
    total = _read(settings, tokenizer, folder, detectors, report)
    progress = _Progress(report, total * (2 + passes_after))
    blacklists = {split: Blacklist() for split in ("repair", "heldout", "control")}
    controls = _find(folder, key, detectors, blacklists, progress)
    detection = _close(folder, key, detectors, blacklists, controls, progress)
    if not detection.with_spans["repair"]:
        raise InputError(
            "corpus: nothing sensitive was found in the text that repair trains on; check `detect`, `target` and `text`"
        )
    return detection


class _Detectors:
    """The detectors of the settings, by where they run."""

    def __init__(self, settings: CorpusSettings) -> None:
        self.target = _Target(settings.target)
        self._everywhere: list[Detector] = []
        self._on_records: list[Detector] = []
        self.rare_terms: list[RareTerms] = []
        self.ordinary = OrdinaryWords() if any(isinstance(d, PresidioDetector) for d in settings.detect) else None
        for chosen in settings.detect:
            if isinstance(chosen, TermsDetector):
                self._everywhere.append(terms(chosen))
            elif isinstance(chosen, PresidioDetector):
                self._on_records.append(presidio(chosen, self.ordinary or ()))
            elif isinstance(chosen, AnnotationsDetector):
                self._on_records.append(labelled_spans)
            else:
                self.rare_terms.append(RareTerms(chosen))
                self._on_records.append(self.rare_terms[-1].detect)
        if settings.target is not None and settings.target.values:
            self._everywhere.append(term_detector(settings.target.values, "TARGET", "confidential", "target"))

    def find(self, batch: Sequence[Document]) -> list[list[Span]]:
        """Return the findings of all detectors that run on each document's split, unmerged."""
        found: list[list[Span]] = [[] for _ in batch]
        records = [i for i, document in enumerate(batch) if not document.split.startswith("general")]
        for indices, detectors in ((range(len(batch)), self._everywhere), (records, self._on_records)):
            chosen = [batch[i] for i in indices]
            for detector in detectors if chosen else ():
                for i, spans in zip(indices, detector(chosen), strict=True):
                    found[i] += spans
        return [
            [span for span in spans if self.target.keeps(document, span)]
            for document, spans in zip(batch, found, strict=True)
        ]

    def labelled(self, document: Document) -> list[Span]:
        """Return the labelled spans of a document that the target leaves."""
        return [span for span in document.labelled or () if self.target.keeps(document, span)]


class _Target:
    """Right to erasure: in the text of repair only these values and the records of these subjects are sensitive."""

    def __init__(self, settings: TargetSettings | None) -> None:
        self._keys = {value_key(value) for value in settings.values} if settings else set()
        self._subjects = set(settings.subjects) if settings else set()

    def keeps(self, document: Document, span: Span) -> bool:
        """Whether the target leaves a span. Held-out and control documents keep all: others are compared with them."""
        if not (self._keys or self._subjects) or document.split in ("heldout", "control") or span.detector == "target":
            return True
        return document.subject in self._subjects or value_key(document.text[span.start : span.end]) in self._keys


class _Progress:
    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def batches(self, path: Path) -> Iterator[list[Document]]:
        for batch in read_documents(path):
            yield batch
            self._done += len(batch)
            if self._report is not None:
                self._report(self._done, self._total)


def _read(
    settings: CorpusSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    detectors: _Detectors,
    report: Report | None,
) -> int:
    """Write documents.parquet, draw the graph of rare terms, learn ordinary words, and return the number of documents."""
    total = 0
    with DocumentWriter(folder / "documents.parquet") as writer:
        for document in documents(settings, tokenizer):
            writer.add(document)
            total += 1
            if document.split == "repair":
                for rare_terms in detectors.rare_terms:
                    rare_terms.add(document)
            if detectors.ordinary is not None:
                detectors.ordinary.add(document)
            if report is not None and total % 256 == 0:
                report(total, None)
    return total


def _find(
    folder: Path, key: bytes, detectors: _Detectors, blacklists: dict[str, Blacklist], progress: _Progress
) -> set[str]:
    """Write found.parquet, fill the blacklists, and return the folded values of control."""
    controls: set[str] = set()
    with SpanWriter(folder / "found.parquet", key) as writer:
        for batch in progress.batches(folder / "documents.parquet"):
            for document, findings in zip(batch, detectors.find(batch), strict=True):
                merged = merge(findings)
                writer.add(document, merged)
                if document.split in blacklists:
                    # Findings as they are and joined: either may stand elsewhere on its own.
                    blacklists[document.split].add(document, findings)
                    blacklists[document.split].add(document, merged)
                if document.split == "control":
                    spans = [*findings, *merged, *detectors.labelled(document)]
                    controls.update(value_key(document.text[span.start : span.end]) for span in spans)
    return controls


def _close(
    folder: Path,
    key: bytes,
    detectors: _Detectors,
    blacklists: dict[str, Blacklist],
    controls: set[str],
    progress: _Progress,
) -> Detection:
    """Write spans.parquet and labelled.parquet, remove found.parquet, and count."""
    detection = Detection()
    control_values = TermMatcher((value, value) for value in sorted(controls))
    found = SpanReader(folder / "found.parquet")
    with (
        SpanWriter(folder / "spans.parquet", key) as spans_writer,
        # Far above the others, so that an id means one span whichever table it is in.
        SpanWriter(folder / "labelled.parquet", key, first_id=FIRST_LABELLED_ID) as labelled_writer,
    ):
        for batch in progress.batches(folder / "documents.parquet"):
            for document in batch:
                split = document.split
                own = [stored.span for stored in found.of(document.id)]
                blacklist = blacklists.get(split, blacklists["repair"])
                spans = merge([*own, *blacklist.occurrences(document)])
                spans_writer.add(document, spans)
                labelled = detectors.labelled(document)
                labelled_writer.add(document, labelled)
                detection.documents[split] += 1
                detection.with_spans[split] += bool(spans)
                detection.kinds[split].update(span.kind for span in spans)
                detection.classes[split].update(span.sensitivity for span in spans)
                detection.detectors[split].update(span.detector for span in spans)
                detection.labelled[split] += len(labelled)
                if split == "repair" and document.labelled is not None:
                    detection.score.add(document, labelled, spans)
                if split in ("repair", "general_train"):
                    detection.trained_controls.update(value for _, _, value in control_values.find(document.folded))
    (folder / "found.parquet").unlink()
    if not detection.labelled.total():
        (folder / "labelled.parquet").unlink()
    return detection
