"""The audit of a masked language model: what it says in the place of tokens that are hidden from it.

A span is hidden whole, and each of its tokens predicted at once: "greedy" says that all are the first choice, and p(span) is the product of
their probabilities. Then its tokens are hidden one by one, each with the others in sight, which gives more away. Ordinary tokens are
asked for one in seven at a time; exp of their mean -log p is a pseudo-perplexity, comparable between audits of one model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from sani_dist.audit import use
from sani_dist.audit.extraction import extraction, score_spans
from sani_dist.audit.losses import document_losses
from sani_dist.audit.measure import UNSEEN, Audit, Report
from sani_dist.audit.scores import TokenScores, score
from sani_dist.audit.spans import SPLITS, Corpus
from sani_dist.audit.utility import next_token_accuracy, perplexity
from sani_dist.config import AuditSettings
from sani_dist.corpus.masking import HiddenRows, every_token
from sani_dist.corpus.rows import LEARN, PackedRows
from sani_dist.engine.zero3 import Engine

# The metrics that are measured of a masked language model; the others ask it to go on with a text. Of `use` the report says so.
METRICS = ("extraction", "utility")


def audit_masked(
    engine: Engine,
    rows: Mapping[str, PackedRows],
    corpus: Corpus,
    mask_token: int,
    settings: AuditSettings,
    report: Report = lambda done, total: None,
) -> Audit:
    """As `audit` of `measure`, with those of `settings.metrics` that are among `METRICS`. All ranks get the same."""
    spans = corpus.spans(sees_both_sides=True)
    asked = {split: _asked(of_split, spans[spans["split"] == split], mask_token) for split, of_split in rows.items()}
    total = sum(len(hidden) for of_split in asked.values() for hidden in of_split.values())
    done = 0
    scores: dict[str, dict[str, TokenScores]] = {}
    for split, of_split in asked.items():
        scores[split] = {}
        for name, hidden in of_split.items():
            shape = (len(rows[split]), rows[split].row_length)
            scores[split][name] = _in_place(
                score(engine, hidden, settings.micro_rows, _after(report, done, total)), hidden, shape
            )
            done += len(hidden)

    measured = []
    if "extraction" in settings.metrics:
        for name, suffix in (("whole", ""), ("one by one", "_one_by_one")):
            tables = [_scored(scores, spans, split, name) for split in SPLITS.values()]
            found = extraction(tables[0], tables[1], settings.samples)
            kept = found if not suffix else [m for m in found if m.metric == "greedy"]
            measured += [replace(m, metric=m.metric + suffix) for m in kept]
    ordinary = {split: scores[split]["ordinary"] for split in rows}
    measured += [perplexity(split, ordinary[split], rows[split]) for split in rows if split != "control"]
    if "utility" in settings.metrics:
        measured += [
            replace(next_token_accuracy(split, ordinary[split], rows[split]), metric="hidden_token_accuracy")
            for split in UNSEEN
            if split in rows
        ]
    if "use" in settings.metrics:
        measured += use.measure(use.EMPTY, use.NOT_MASKED)
    broken = {split: sum(found.not_finite for found in scores[split].values()) for split in rows}
    not_finite = {split: count for split, count in broken.items() if count}
    return Audit(measured, document_losses(ordinary, rows), not_finite, use.EMPTY)


def _asked(rows: PackedRows, spans: pd.DataFrame, mask_token: int) -> dict[str, HiddenRows]:
    places = [
        (int(row), np.arange(first, end))
        for row, first, end in zip(spans["row"], spans["first"], spans["end"], strict=True)
    ]
    single = [(row, columns[i : i + 1]) for row, columns in places for i in range(len(columns))]
    hidden = {"ordinary": every_token(rows, LEARN), "whole": places, "one by one": single}
    return {name: HiddenRows(rows, found, mask_token) for name, found in hidden.items()}


def _in_place(asked: TokenScores, hidden: HiddenRows, shape: tuple[int, int]) -> TokenScores:
    """Scores of the hidden tokens at their places in the rows they were hidden in, [rows, row_length]."""
    logprob, is_argmax = np.full(shape, np.nan, np.float32), np.zeros(shape, bool)
    for number, (row, columns) in enumerate(hidden.hidden):
        logprob[row, columns] = asked.logprob[number, columns]
        is_argmax[row, columns] = asked.is_argmax[number, columns]
    return TokenScores(logprob, is_argmax, not_finite=asked.not_finite)


def _scored(
    scores: Mapping[str, Mapping[str, TokenScores]], spans: pd.DataFrame, split: str, name: str
) -> pd.DataFrame:
    nothing = TokenScores(np.empty((0, 0), np.float32), np.empty((0, 0), bool))
    of_split = scores[split][name] if split in scores else nothing
    return score_spans(of_split, spans[spans["split"] == split] if split in scores else spans.iloc[:0])


def _after(report: Report, before: int, total: int) -> Callable[[int], None]:
    return lambda done: report(before + done, total)
