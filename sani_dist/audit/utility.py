"""What the model is still worth: perplexity, next tokens, and telling the true continuation of a text from a foreign one."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from sani_dist.audit.candidates import CHARACTERS_BEFORE, Question
from sani_dist.audit.measurement import Measurement, bootstrap_by_document, clopper_pearson, without_value
from sani_dist.audit.scores import TokenScores
from sani_dist.corpus.rows import LEARN, PackedRows

# A sentence of at least this many characters, and as many before it, say something about each other.
FEWEST_CHARACTERS = 40
# Tokens of a continuation that count: enough to tell a foreign sentence by, few enough to cost little.
CONTINUATION_TOKENS = 24
_SENTENCE_END = re.compile(r"[.!?]\s+|\n+")


def perplexity(split: str, scores: TokenScores, rows: PackedRows) -> Measurement:
    """exp(mean -log p) over the learnable tokens of a split; the interval resamples documents."""
    learnable, document = _learnable(scores, rows)
    nll = -scores.logprob[learnable].astype(np.float64)
    if not nll.size:
        return _nothing("perplexity", split, scores)
    low, high = bootstrap_by_document(nll, np.ones(nll.size), document)
    found = Measurement(
        "perplexity", split, float(np.exp(nll.mean())), float(np.exp(low)), float(np.exp(high)), nll.size, {}
    )
    return without_value(found, scores.not_finite) if scores.not_finite else found


def next_token_accuracy(split: str, scores: TokenScores, rows: PackedRows) -> Measurement:
    """Share of the learnable tokens of a split that are the model's first choice; the interval resamples documents."""
    learnable, document = _learnable(scores, rows)
    hits = scores.is_argmax[learnable].astype(np.float64)
    if not hits.size:
        return _nothing("next_token_accuracy", split, scores)
    low, high = bootstrap_by_document(hits, np.ones(hits.size), document)
    found = Measurement("next_token_accuracy", split, float(hits.mean()), low, high, hits.size, {})
    return without_value(found, scores.not_finite) if scores.not_finite else found


def continuations(texts: Iterable[str], most: int, seed: int) -> list[Question]:
    """At most `most` questions: a text up to the end of a sentence, its next sentence, and a sentence of another of the texts.

    Documents take turns, so that few long ones do not make up all questions; no sentence is asked about twice. The same for a seed.
    """
    draw = random.Random(seed)
    drawn = [draw.sample(found, min(len(found), most)) for found in map(_next_sentences, texts) if found]
    if len(drawn) < 2:
        return []
    turns = [(place, turn) for turn in range(most) for place, found in enumerate(drawn) if turn < len(found)]
    questions = []
    for place, turn in turns[:most]:
        before, true = drawn[place][turn]
        other = draw.choice([i for i in range(len(drawn)) if i != place])
        _, foreign = draw.choice(drawn[other])
        if foreign.casefold() != true.casefold():
            questions.append(Question(before, (true, foreign), tokens=CONTINUATION_TOKENS))
    return questions


def continuation_accuracy(split: str, logprobs: Sequence[Sequence[np.ndarray]]) -> Measurement:
    """Share of questions whose true continuation is likelier than the foreign one, each cut to the tokens of the shorter.

    `logprobs`: for each question, of the tokens of the true and of the foreign continuation. The interval is Clopper-Pearson.
    """
    asked = [(true, foreign) for true, foreign in logprobs]
    if not asked:
        return Measurement(
            "continuation_accuracy", split, None, None, None, 0, {}, "fewer than two documents of sentences"
        )
    hits = 0
    for true, foreign in asked:
        length = min(len(true), len(foreign))
        hits += bool(true[:length].sum() > foreign[:length].sum())
    low, high = clopper_pearson(hits, len(asked))
    return Measurement("continuation_accuracy", split, hits / len(asked), low, high, len(asked), {})


def _learnable(scores: TokenScores, rows: PackedRows) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens of the rows are learnable targets, bool [rows, row_length], and the document of each of those."""
    batch = rows.batch(range(len(rows)))
    learnable = (batch.role.numpy() == LEARN) & ~np.isnan(scores.logprob)
    return learnable, batch.document.numpy()[learnable]


def _nothing(metric: str, split: str, scores: TokenScores) -> Measurement:
    nothing = Measurement(metric, split, None, None, None, 0, {}, "no learnable tokens")
    return without_value(nothing, scores.not_finite) if scores.not_finite else nothing


def _next_sentences(text: str) -> list[tuple[str, str]]:
    """(end of the text before, sentence) for each sentence that is long enough and has enough before it."""
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    return [
        (text[max(0, start - CHARACTERS_BEFORE - 1) : start], text[start:end].rstrip())
        for start, end in pairwise(ends)
        if start >= FEWEST_CHARACTERS and len(text[start:end].rstrip()) >= FEWEST_CHARACTERS
    ]
