"""The fact as a statement to agree with: does the model hold "the date is 3 May" truer of this document than the same of another date?

The true text up to the sentence of the value, then `Statement: the date is 3 May. This statement is true`, or `false`: log p(true) - log
p(false) says how much the model agrees. A model may like a date, or the word true, whatever the document; so the same of the statement
without the document is taken off. What is left is compared with that of a few other values of the same kind, of other spans of the same
population: the share of comparisons that the true value wins is 50 % for a model that knows nothing. The never-trained control shows
what the text gives away.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from sani_dist.attack.context import AttackContext, preference
from sani_dist.attack.prompts import up_to_the_sentence, with_texts, words_for
from sani_dist.attack.result import Result
from sani_dist.audit.candidates import CandidateRows, Question, branching
from sani_dist.audit.scores import score
from sani_dist.audit.spans import SPLITS
from sani_dist.corpus.fold import value_key
from sani_dist.engine.zero3 import Engine

# Other values that a true one is compared with.
OTHERS = 4
_FRAME = "\nStatement: the {0} is "
_ANSWERS = (". This statement is true", ". This statement is false")


def statement(context: AttackContext, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result, of the spans that `prompts` asks for."""
    spans = with_texts(context, context.sample(context.settings.prompt_spans))
    others = other_values(spans, context.settings.seed)
    values = [(value, *of_span) for value, of_span in zip(spans["value"], others, strict=True)]
    engine = next(load)
    engine.for_inference()
    agreed = []
    for befores in ([up_to_the_sentence(before) for before in spans["before"]], ["\n"] * len(spans)):
        asked = [
            Question(
                before + _FRAME.format(*words_for(kind)), tuple(v + answer for v in of_span for answer in _ANSWERS)
            )
            for before, kind, of_span in zip(befores, spans["kind"], values, strict=True)
        ]
        rows = CandidateRows(
            context.tokenizer, asked, max(rows.row_length for rows in context.rows.values()), alone=engine.alone
        )
        scores = score(engine, rows, context.audit.micro_rows, attention=branching)
        agreed.append([agreement(of_question) for of_question in rows.logprobs(scores)])
    engine.close()
    pairs = np.array([won(with_text, alone) for with_text, alone in zip(*agreed, strict=True)]).reshape(-1, 2)
    measured = []
    for population, split in SPLITS.items():
        here = (spans["split"] == split).to_numpy()
        measured.append(preference(population, pairs[here], spans["document"].to_numpy()[here]))
    yield Result("statement", "agree", name, tuple(measured))


def other_values(spans: pd.DataFrame, seed: int) -> list[tuple[str, ...]]:
    """For each span at most `OTHERS` other values, of other spans of its kind and split, the same for a seed."""
    draw = random.Random(seed)
    table = spans.assign(key=spans["value"].map(value_key))
    of_kind = {
        group: list(zip(lines["value"], lines["key"], strict=True)) for group, lines in table.groupby(["split", "kind"])
    }
    found = []
    for split, kind, key in zip(table["split"], table["kind"], table["key"], strict=True):
        others = [value for value, other in of_kind[split, kind] if other != key]
        found.append(tuple(draw.sample(others, min(OTHERS, len(others)))))
    return found


def agreement(logprobs: Sequence[np.ndarray]) -> np.ndarray:
    """log p(true) - log p(false) of each statement: what the two have in common before their answers cancels. float64 [statements]."""
    totals = np.array([tokens.sum() for tokens in logprobs], dtype=np.float64).reshape(-1, 2)
    difference: np.ndarray = totals[:, 0] - totals[:, 1]
    return difference


def won(with_text: np.ndarray, alone: np.ndarray) -> tuple[float, float]:
    """How many comparisons the first, true statement wins, and how many there are. Ties count half; none where a prompt fits no row."""
    if len(with_text) != len(alone) or not len(with_text):
        return 0.0, 0.0
    gained = with_text - alone
    return float((gained[0] > gained[1:]).sum() + 0.5 * (gained[0] == gained[1:]).sum()), float(len(gained) - 1)
