"""One audit: which rows are scored, and what is measured from the scores. Every rank runs it, and every rank has the result."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from sani_dist.audit import use
from sani_dist.audit.candidates import CandidateRows, Question, branching
from sani_dist.audit.copying import CopyingRows
from sani_dist.audit.exposure import Ranked, candidates, choose, exposure, rank_of_first
from sani_dist.audit.extraction import extraction, score_spans
from sani_dist.audit.generation import Generation
from sani_dist.audit.harness import harness
from sani_dist.audit.kinds import comparable
from sani_dist.audit.losses import document_losses
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.membership import NO_TEXTS, membership, score_texts, zlib_size
from sani_dist.audit.scores import TokenScores, score
from sani_dist.audit.spans import SPLITS, Corpus
from sani_dist.audit.utility import continuation_accuracy, continuations, next_token_accuracy, perplexity
from sani_dist.config import AuditSettings
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine.zero3 import Engine

Report = Callable[[int, int], None]

# Splits that are read for what the model lost.
UNSEEN = ("heldout", "general_test")


@dataclass(frozen=True)
class Audit:
    """What was measured, the loss of each document (see `audit.losses`), of each split how many scores are not finite, and of each control
    document what `audit.use` sums."""

    measurements: list[Measurement]
    losses: pd.DataFrame
    not_finite: dict[str, int]
    use: pd.DataFrame


def audit(
    engine: Engine,
    rows: Mapping[str, PackedRows],
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    settings: AuditSettings,
    reference: Mapping[str, TokenScores],
    report: Report = lambda done, total: None,
) -> Audit:
    """Score the rows of each split and what `settings.metrics` asks beside them, and measure.

    `rows`: of the splits there are, of repair, control, heldout and general_test. `reference`: scores of repair and control by a
    reference model, or {}. `report`: called with rows and prompts done, and their number.
    """
    wanted = set(settings.metrics)
    spans = corpus.spans()
    questions = _Questions(corpus, tokenizer, spans, rows, settings, engine.alone)
    texts = (
        Generation(spans, rows, corpus, tokenizer, settings.generation, settings.seed)
        if "generation" in wanted
        else None
    )
    asks_use = "use" in wanted and "control" in rows
    copies = _copying_rows(corpus, tokenizer, spans, rows, settings) if asks_use else None
    prompts = texts.prompts if texts is not None else 0
    copied = len(copies) if copies is not None else 0
    total = sum(map(len, rows.values())) + copied + len(questions.rows) + prompts
    done, scores = 0, {}
    for split, of_split in rows.items():
        moments = "membership" in wanted and split in SPLITS.values()
        ranks = asks_use and split == "control"
        step = partial(_report_from, report, done, total)
        scores[split] = score(engine, of_split, settings.micro_rows, step, moments=moments, rank=ranks)
        done += len(of_split)
    sums = use.EMPTY
    if copies is not None:
        step = partial(_report_from, report, done, total)
        sums = _use(engine, scores["control"], copies, spans, settings, step)
        done += copied
    step = partial(_report_from, report, done, total)
    answers = score(engine, questions.rows, settings.micro_rows, step, attention=branching)
    done += len(questions.rows)

    broken = {split: found.not_finite for split, found in scores.items() if found.not_finite}
    if broken:  # nothing can be drawn from such a model, or ranked by it
        wanted &= {"extraction", "utility"}
    measured: list[Measurement] = []
    if "extraction" in wanted:
        sensitive, control = (_scored(scores, spans, split) for split in SPLITS.values())
        measured += extraction(sensitive, control, settings.samples)
    if texts is not None and not broken:
        measured += texts.measure(engine, scores, partial(_report_from, report, done, total))
        if asks_use:
            sums = _joined(sums, use.of_forms(texts.written_forms))
    if "use" in wanted:
        measured += use.measure(sums, None if asks_use else use.NO_CONTROL)
    if "exposure" in wanted:
        measured += questions.exposure(answers)
    if "membership" in wanted:
        measured += _membership(corpus, rows, scores, reference, spans)
    for split in rows:
        if split != "control":
            measured.append(perplexity(split, scores[split], rows[split]))
    if "utility" in wanted:
        measured += [next_token_accuracy(split, scores[split], rows[split]) for split in UNSEEN if split in rows]
        measured += questions.accuracy(answers) if not broken else []
    if settings.harness.tasks and not broken:
        measured += harness(engine, tokenizer, settings, max(of_split.row_length for of_split in rows.values()))
    return Audit(measured, document_losses(scores, rows), broken, use.EMPTY if broken else sums)


def audit_use(
    engine: Engine, rows: Mapping[str, PackedRows], corpus: Corpus, tokenizer: PreTrainedTokenizerBase, settings: AuditSettings,
    report: Report = lambda done, total: None,
) -> tuple[list[Measurement], pd.DataFrame]:  # fmt: skip
    """What `audit` says of the use that must stay, of a model to compare with: one forward pass over the control, and nothing written."""
    if "control" not in rows:
        return use.measure(use.EMPTY, use.NO_CONTROL), use.EMPTY
    spans = corpus.spans()
    copies = _copying_rows(corpus, tokenizer, spans, rows, settings)
    total = len(rows["control"]) + len(copies)
    step = partial(_report_from, report, 0, total)
    control = score(engine, rows["control"], settings.micro_rows, step, rank=True)
    step = partial(_report_from, report, len(rows["control"]), total)
    sums = _use(engine, control, copies, spans, settings, step)
    return [m for m in use.measure(sums) if m.metric != "value_form"], sums


def reference_scores(engine: Engine, rows: Mapping[str, PackedRows], settings: AuditSettings) -> dict[str, TokenScores]:
    """Scores of repair and control by the model that membership is compared with."""
    return {split: score(engine, rows[split], settings.micro_rows) for split in SPLITS.values() if split in rows}


def _copying_rows(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, spans: pd.DataFrame, rows: Mapping[str, PackedRows], settings: AuditSettings
) -> CopyingRows:  # fmt: skip
    length = max(of_split.row_length for of_split in rows.values())
    return CopyingRows(corpus, tokenizer, spans, length, most=settings.copying_documents, seed=settings.seed)


def _use(
    engine: Engine, control: TokenScores, copies: CopyingRows, spans: pd.DataFrame, settings: AuditSettings,
    report: Callable[[int], None],
) -> pd.DataFrame:  # fmt: skip
    """All that `audit.use` can sum from forward passes. `control`: scores of the control's rows, with ranks."""
    repeats = score(engine, copies, settings.micro_rows, report)
    here = spans[spans["split"] == "control"]
    return _joined(
        use.of_copies("copied", control, here[here["in_context"]]),
        use.of_copies("copied_appended", repeats, copies.spans),
        use.of_values(control, here[~here["in_context"]]),
    )


def _joined(*sums: pd.DataFrame) -> pd.DataFrame:
    there = [lines for lines in sums if len(lines)]
    return pd.concat(there, ignore_index=True) if there else use.EMPTY


class _Questions:
    """What is asked beside the rows of the corpus: candidates of structured values, and continuations. One packing for all."""

    def __init__(
        self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, spans: pd.DataFrame, rows: Mapping[str, PackedRows],
        settings: AuditSettings, alone: bool,
    ) -> None:  # fmt: skip
        # Of each question: its population or split, and the line of `spans` it is about (None: a continuation).
        self._about: list[tuple[str, pd.Series | None]] = []
        asked: list[Question] = []
        if "exposure" in settings.metrics:
            for population, line, question in _exposure_questions(corpus, spans, settings):
                self._about.append((population, line))
                asked.append(question)
        self._continued = [split for split in UNSEEN if split in rows]
        if "utility" in settings.metrics:
            for split in self._continued:
                for question in _continuation_questions(corpus, split, settings):
                    self._about.append((split, None))
                    asked.append(question)
        self.rows = CandidateRows(tokenizer, asked, max(of_split.row_length for of_split in rows.values()), alone=alone)

    def exposure(self, answers: TokenScores) -> list[Measurement]:
        ranked: dict[str, list[Ranked]] = {population: [] for population in SPLITS}
        for (population, line), logprobs in zip(self._about, self.rows.logprobs(answers), strict=True):
            if line is not None and logprobs:
                value = Ranked(int(line["document"]), str(line["kind"]), rank_of_first(logprobs), len(logprobs))
                ranked[population].append(value)
        return exposure(ranked)

    def accuracy(self, answers: TokenScores) -> list[Measurement]:
        found = list(zip(self._about, self.rows.logprobs(answers), strict=True))
        return [
            continuation_accuracy(split, [p for (of, line), p in found if of == split and line is None and p])
            for split in self._continued
        ]


def _exposure_questions(
    corpus: Corpus, spans: pd.DataFrame, settings: AuditSettings
) -> Iterator[tuple[str, pd.Series, Question]]:
    chosen = []
    for population, split in SPLITS.items():
        here = spans[spans["split"] == split]
        chosen.append(choose(here.assign(value=corpus.values(here)), settings.exposure_spans, settings.seed).assign(population=population))  # fmt: skip # noqa: E501
    lines = pd.concat(chosen)
    texts = dict(corpus.texts(set(lines["document"])))
    for _, line in lines.iterrows():
        text = texts[line["document"]]
        values = candidates(line["kind"], line["value"], line["span_id"], settings.exposure_candidates, settings.seed)
        yield line["population"], line, Question(text[: line["start"]], values, text[line["stop"] :])


def _continuation_questions(corpus: Corpus, split: str, settings: AuditSettings) -> list[Question]:
    documents = corpus.documents(split)
    # As many documents as questions are enough.
    chosen = random.Random(settings.seed).sample(documents, min(len(documents), settings.continuations))
    return continuations((text for _, text in corpus.texts(set(chosen))), settings.continuations, settings.seed)


def _scored(scores: Mapping[str, TokenScores], spans: pd.DataFrame, split: str) -> pd.DataFrame:
    nothing = TokenScores(np.empty((0, 0), np.float32), np.empty((0, 0), bool))
    return score_spans(
        scores.get(split, nothing), spans[spans["split"] == split] if split in scores else spans.iloc[:0]
    )


def _membership(
    corpus: Corpus,
    rows: Mapping[str, PackedRows],
    scores: Mapping[str, TokenScores],
    reference: Mapping[str, TokenScores],
    spans: pd.DataFrame,
) -> list[Measurement]:
    """Of spans of the kinds that have a control, and of whole documents."""
    of_spans, of_documents = [], []
    sensitive, control = (spans[(spans["split"] == split) & ~spans["in_context"]] for split in SPLITS.values())
    for split, here in zip(SPLITS.values(), comparable(sensitive, control), strict=True):
        if split not in rows:
            of_spans.append(NO_TEXTS)
            of_documents.append(NO_TEXTS)
            continue
        sizes = [zlib_size(value) for value in corpus.values(here)]
        of_spans.append(score_texts(scores[split], reference.get(split), _places_of_spans(here, sizes)))
        places = _places_of_documents(rows[split], scores[split], corpus.zlib_sizes(split))
        of_documents.append(score_texts(scores[split], reference.get(split), places))
    return [*membership("sensitive", *of_spans), *membership("repair", *of_documents)]


def _places_of_spans(spans: pd.DataFrame, sizes: list[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    for document, row, first, end, size in zip(
        spans["document"], spans["row"], spans["first"], spans["end"], sizes, strict=True
    ):
        columns = np.arange(first, end)
        yield int(document), np.full(len(columns), row), columns, size


def _places_of_documents(
    rows: PackedRows, scores: TokenScores, sizes: Mapping[int, int]
) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
    """All scored tokens of each document, wherever its pieces lie."""
    row, column = np.nonzero(~np.isnan(scores.logprob))
    document = rows.batch(range(len(rows))).document.numpy()[row, column]
    order = np.argsort(document, kind="stable")
    numbers, starts = np.unique(document[order], return_index=True)
    for number, places in zip(numbers, np.split(order, starts[1:]), strict=True):
        yield int(number), row[places], column[places], sizes[int(number)]


def _report_from(report: Report, before: int, total: int, done: int) -> None:
    report(before + done, total)
