"""Everything sensitive in the corpus, in three passes over it: write the documents, find, close.

read     sources -> documents.parquet, the graph of rare terms, and the words that are no names
find     each document's own findings; their values go on the blacklist
close    findings and all occurrences of blacklisted values, merged -> spans.parquet

What finding and closing do with a batch of documents is a function of its number (`_Find`, `_Close`), which reads the batch itself and
can be pickled: so other processes can work on batches (`executor.py`). What they return comes back in order, and is written here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sani_dist.config import AnnotationsDetector, CorpusSettings, PresidioDetector, TargetSettings, TermsDetector
from sani_dist.corpus.annotations import labelled_spans
from sani_dist.corpus.closure import Blacklist, Values, merge, values_of
from sani_dist.corpus.documents import documents
from sani_dist.corpus.executor import Executor
from sani_dist.corpus.fold import value_key
from sani_dist.corpus.ordinary import OrdinaryWords
from sani_dist.corpus.presidio import presidio
from sani_dist.corpus.rare_terms import RareTerms
from sani_dist.corpus.score import DetectorScore
from sani_dist.corpus.span import SPLITS, Detector, Document, Span, Split, value_id
from sani_dist.corpus.subjects import subject_of
from sani_dist.corpus.tables import DocumentReader, DocumentWriter, SpanReader, SpanWriter
from sani_dist.corpus.terms import TermMatcher, term_detector, terms
from sani_dist.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Called with the documents done, over all passes, and how many that will be (None while it is unknown).
Report = Callable[[int, int | None], None]

# The splits whose spans the audit measures.
AUDITED: tuple[Split, ...] = ("repair", "control")
# Those that repair learns from.
TRAINED: tuple[Split, ...] = ("repair", "general_train")
FIRST_LABELLED_ID = 2**40
# The splits that have a blacklist of their own; general text is closed over that of repair.
_CLOSED: tuple[Split, ...] = ("repair", "heldout", "control")


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
    # The batches of documents.parquet in which a split begins and ends.
    batches: dict[str, range] = field(default_factory=dict)
    # Folded values of control that the training text has as well: they are no control.
    trained_controls: set[str] = field(default_factory=set)

    def update(self, other: Detection) -> None:
        """Add what was counted in a later batch."""
        for name in ("documents", "with_spans", "labelled", "score", "trained_controls"):
            getattr(self, name).update(getattr(other, name))
        for split in SPLITS:
            for mine, others in (
                (self.kinds, other.kinds),
                (self.classes, other.classes),
                (self.detectors, other.detectors),
            ):
                mine[split].update(others[split])
        for name, batches in other.batches.items():
            self.batches[name] = range(self.batches.get(name, batches).start, batches.stop)

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
    executor: Executor = map,
) -> Detection:
    """Write `run/corpus/documents.parquet`, `spans.parquet` and, if there are labels, `labelled.parquet`.

    Which detectors run where: all of them on repair, heldout and control; on general text only the terms and the
    target, since the names in it are public. The blacklist of repair is closed over repair and general text, those of
    heldout and control over themselves. `key` keys the hashes of the values; `passes_after` tells `report` what the
    caller adds; `executor` says who works on the batches.

    Raises `InputError` for bad settings, bad input, and a corpus in whose repair text nothing sensitive is found.
    """
    folder = run / "corpus"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    detectors = _Detectors(settings)
    total = _read(settings, tokenizer, folder, detectors, report)
    progress = _Progress(report, total * (2 + passes_after))
    blacklists = {split: Blacklist() for split in _CLOSED}
    controls = _find(folder, detectors, blacklists, progress, executor)
    detection = _close(folder, key, detectors.target, blacklists, controls, progress, executor)
    if not detection.with_spans["repair"]:
        raise InputError(
            "corpus: nothing sensitive was found in the text that repair trains on; check `detect`, `target` and `text`"
        )
    return detection


class _Detectors:
    """The detectors of the settings, by where they run. A copy in another process (pickle) has what was learnt, and its own models."""

    def __init__(
        self, settings: CorpusSettings, rare_terms: Sequence[RareTerms] = (), ordinary: OrdinaryWords | None = None
    ) -> None:
        """`rare_terms`, `ordinary`: what the pass over the documents has learnt already."""
        self._settings = settings
        self.target = _Target(settings.target)
        self._everywhere: list[Detector] = []
        self._on_records: list[Detector] = []
        self.rare_terms: list[RareTerms] = []
        learnt = iter(rare_terms)
        self.ordinary = ordinary
        if ordinary is None and any(isinstance(d, PresidioDetector) for d in settings.detect):
            self.ordinary = OrdinaryWords()
        for chosen in settings.detect:
            if isinstance(chosen, TermsDetector):
                self._everywhere.append(terms(chosen))
            elif isinstance(chosen, PresidioDetector):
                self._on_records.append(presidio(chosen, self.ordinary or ()))
            elif isinstance(chosen, AnnotationsDetector):
                self._on_records.append(labelled_spans)
            else:
                self.rare_terms.append(next(learnt, None) or RareTerms(chosen))
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

    def __reduce__(self) -> tuple[type[_Detectors], tuple[Any, ...]]:
        return _Detectors, (self._settings, self.rare_terms, self.ordinary)


class _Target:
    """Right to erasure: in the text of repair only these values and the records of these subjects are sensitive."""

    def __init__(self, settings: TargetSettings | None) -> None:
        values, subjects = (settings.values, settings.subjects) if settings else ((), ())
        self._values = [value_key(value) for value in values]
        self._keys = set(self._values)
        self._subjects = [subject_of(subject) for subject in subjects]
        self._matcher = TermMatcher((key, key) for key in self._keys)

    def found(self, documents: Sequence[Document]) -> set[tuple[str, str]]:
        """The entries, (values or subjects, entry), that the text of these documents has. `check` looks for all of them."""
        found: set[tuple[str, str]] = set()
        for document in documents if self._keys or self._subjects else ():
            if document.split in TRAINED:
                found.update(("values", key) for _, _, key in self._matcher.find(document.folded))
                if document.subject is not None and document.subject in self._subjects:
                    found.add(("subjects", document.subject))
        return found

    def check(self, found: set[tuple[str, str]]) -> None:
        """Raise `InputError` for an entry that nothing matches: who asked to be forgotten would be forgotten by the run instead."""
        for name, entries, what in (
            ("values", self._values, "it occurs nowhere in the text that is trained on"),
            ("subjects", self._subjects, "no record of the text that is trained on has it as its subject"),
        ):
            for number, entry in enumerate(entries, 1):
                if (name, entry) not in found:
                    raise InputError(f"corpus.target.{name}: entry {number} matches nothing: {what}")

    def keeps(self, document: Document, span: Span) -> bool:
        """Whether the target leaves a span. Held-out and control documents keep all: others are compared with them."""
        if not (self._keys or self._subjects) or document.split in ("heldout", "control") or span.detector == "target":
            return True
        if document.subject is not None and document.subject in self._subjects:
            return True
        return value_key(document.text[span.start : span.end]) in self._keys

    def labelled(self, document: Document) -> list[Span]:
        """Return the labelled spans of a document that the target leaves."""
        return [span for span in document.labelled or () if self.keeps(document, span)]


class _Progress:
    def __init__(self, report: Report | None, total: int) -> None:
        self._report, self._total, self._done = report, total, 0

    def add(self, documents: int) -> None:
        self._done += documents
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
            for rare_terms in detectors.rare_terms:
                if document.split == "repair":
                    rare_terms.add(document)
                elif document.split.startswith("general"):
                    rare_terms.add_general(document)
            if detectors.ordinary is not None:
                detectors.ordinary.add(document)
            if report is not None and total % 256 == 0:
                report(total, None)
    return total


@dataclass(frozen=True)
class _Found:
    """What finding returns for a batch."""

    spans: list[tuple[int, list[Span]]]  # document and its findings, merged
    values: dict[Split, Values]  # for the blacklist of each split
    controls: set[str]  # folded values of control
    targets: set[tuple[str, str]]  # entries of the target that the text has


@dataclass(frozen=True)
class _Find:
    """Find what is sensitive in each document of a batch by itself."""

    documents: DocumentReader
    detectors: _Detectors

    def __call__(self, number: int) -> _Found:
        batch = self.documents[number]
        found = self.detectors.find(batch)
        merged = [merge(spans) for spans in found]
        # Findings as they are and joined: either may stand elsewhere on its own.
        both = [own if own == joined else [*own, *joined] for own, joined in zip(found, merged, strict=True)]
        values: dict[Split, Values] = {}
        for split in {document.split for document in batch} & set(_CLOSED):
            of_split = ((d, spans) for d, spans in zip(batch, both, strict=True) if d.split == split)
            values[split] = values_of((d, span) for d, spans in of_split for span in spans)
        controls = {
            value_key(document.text[span.start : span.end])
            for document, spans in zip(batch, both, strict=True)
            if document.split == "control"
            for span in chain(spans, self.detectors.target.labelled(document))
        }
        spans = [(d.id, spans) for d, spans in zip(batch, merged, strict=True)]
        return _Found(spans, values, controls, self.detectors.target.found(batch))


def _find(
    folder: Path,
    detectors: _Detectors,
    blacklists: dict[Split, Blacklist],
    progress: _Progress,
    executor: Executor,
) -> set[str]:
    """Write found.parquet, fill the blacklists, and return the folded values of control."""
    controls, targets = set[str](), set[tuple[str, str]]()
    documents = DocumentReader(folder / "documents.parquet")
    with SpanWriter(folder / "found.parquet") as writer:
        for found in executor(_Find(documents, detectors), range(len(documents))):
            for document, spans in found.spans:
                writer.add(document, spans, [""] * len(spans))
            for split, values in found.values.items():
                blacklists[split].add(values)
            controls |= found.controls
            targets |= found.targets
            progress.add(len(found.spans))
    detectors.target.check(targets)
    return controls


@dataclass(frozen=True)
class _Closed:
    """What closing returns for a batch: of each document its spans with the hashes of their values, and so the labelled ones."""

    spans: list[tuple[int, list[Span], list[str]]]
    labelled: list[tuple[int, list[Span], list[str]]]
    counted: Detection


@dataclass(frozen=True)
class _Close:
    """Join what was found in each document of a batch with all occurrences of blacklisted values."""

    documents: DocumentReader
    found: SpanReader
    key: bytes
    target: _Target
    blacklists: dict[Split, Blacklist]
    control_values: TermMatcher[str]

    def __call__(self, number: int) -> _Closed:
        batch = self.documents[number]
        closed = _Closed([], [], Detection())
        for document, found in zip(batch, self.found.of([d.id for d in batch]), strict=True):
            blacklist = self.blacklists.get(document.split, self.blacklists["repair"])
            spans = merge([*(stored.span for stored in found), *blacklist.occurrences(document)])
            labelled = self.target.labelled(document)
            closed.spans.append((document.id, spans, self._value_ids(document, spans)))
            closed.labelled.append((document.id, labelled, self._value_ids(document, labelled)))
            self._count(closed.counted, document, spans, labelled)
            closed.counted.batches[document.split] = range(number, number + 1)
        return closed

    def _value_ids(self, document: Document, spans: list[Span]) -> list[str]:
        return [value_id(self.key, span.kind, document.text[span.start : span.end]) for span in spans]

    def _count(self, counted: Detection, document: Document, spans: list[Span], labelled: list[Span]) -> None:
        split = document.split
        counted.documents[split] += 1
        counted.with_spans[split] += bool(spans)
        counted.kinds[split].update(span.kind for span in spans)
        counted.classes[split].update(span.sensitivity for span in spans)
        counted.detectors[split].update(span.detector for span in spans)
        counted.labelled[split] += len(labelled)
        if split == "repair" and document.labelled is not None:
            counted.score.add(document, labelled, spans)
        if split in TRAINED:
            counted.trained_controls.update(
                value for view in document.views for _, _, value in self.control_values.find(view)
            )


def _close(
    folder: Path,
    key: bytes,
    target: _Target,
    blacklists: dict[Split, Blacklist],
    controls: set[str],
    progress: _Progress,
    executor: Executor,
) -> Detection:
    """Write spans.parquet and labelled.parquet, remove found.parquet, and count."""
    detection = Detection()
    documents, found = DocumentReader(folder / "documents.parquet"), SpanReader(folder / "found.parquet")
    close = _Close(documents, found, key, target, blacklists, TermMatcher((value, value) for value in sorted(controls)))
    with (
        SpanWriter(folder / "spans.parquet") as spans_writer,
        # Far above the others, so that an id means one span whichever table it is in.
        SpanWriter(folder / "labelled.parquet", FIRST_LABELLED_ID) as labelled_writer,
    ):
        for closed in executor(close, range(len(documents))):
            for document in closed.spans:
                spans_writer.add(*document)
            for document in closed.labelled:
                labelled_writer.add(*document)
            detection.update(closed.counted)
            progress.add(len(closed.spans))
    (folder / "found.parquet").unlink()
    if not detection.labelled.total():
        (folder / "labelled.parquet").unlink()
    return detection
