"""The use that must stay, which perplexity does not show: a model that has been told to push identifiers down may no longer write any.

Asked in control documents, which no training saw, so nothing here is memory:

| metric | what of each document is summed | over |
|---|---|---|
| copied, copied_probability | values that stand earlier in the document: greedy decoding reproduces them; p | values |
| copied_appended, copied_appended_probability | the same of values repeated at the end of the document (`copying.py`) | values |
| value_logprob | log p of the tokens of values that stand there for the first time | tokens |
| value_rank | log of the rank of these tokens, 1 for the likeliest | tokens |
| value_form | greedy decoding writes an identifier of the kind's form (`forms.py`) where such a value stands; a sample of them | values |

Each is the ratio of the two sums, documents resampled for its interval; value_rank is the exp of it, a geometric mean. The sums of each
document are kept, so that two models can be compared document by document.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sani_dist.audit.extraction import score_spans
from sani_dist.audit.measurement import Measurement, bootstrap_by_document
from sani_dist.audit.scores import TokenScores

POPULATION = "control"
METRICS = (
    "copied", "copied_probability", "copied_appended", "copied_appended_probability", "value_logprob", "value_rank",
    "value_form",
)  # fmt: skip
# Also measured of each kind.
OF_KINDS = ("value_logprob", "value_rank", "value_form")
NOT_MASKED = "not measured: a masked language model does not go on with a text"
NO_CONTROL = "no control documents (corpus.control)"
_NOTHING = {
    "copied": "no value stands earlier in its control document",
    "value_form": "not measured: `generation` is not among audit.metrics, or wrote nothing of the control",
}
_COLUMNS = {"metric": str, "kind": str, "document": np.int64, "total": np.float64, "count": np.int64}
EMPTY = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in _COLUMNS.items()})


def of_copies(name: str, scores: TokenScores, spans: pd.DataFrame) -> pd.DataFrame:
    """Lines of `name` and of its probability. `spans`: document, kind, row, first, end."""
    scored = score_spans(scores, spans)
    ones = np.ones(len(scored), np.int64)
    return pd.concat(
        [
            _sums(name, scored, scored["greedy"].to_numpy(np.float64), ones),
            _sums(f"{name}_probability", scored, np.exp(scored["logprob"].to_numpy(np.float64)), ones),
        ],
        ignore_index=True,
    )


def of_values(scores: TokenScores, spans: pd.DataFrame) -> pd.DataFrame:
    """Lines of value_logprob and value_rank. `scores`: with ranks. `spans`: as `of_copies` takes them."""
    assert scores.rank is not None
    places = list(zip(spans["row"], spans["first"], spans["end"], strict=True))
    tokens = np.array([end - first for _, first, end in places], np.int64)
    logprob = [scores.logprob[row, first:end].astype(np.float64).sum() for row, first, end in places]
    rank = [np.log1p(scores.rank[row, first:end].astype(np.float64)).sum() for row, first, end in places]
    return pd.concat(
        [
            _sums("value_logprob", spans, np.array(logprob, np.float64), tokens),
            _sums("value_rank", spans, np.array(rank, np.float64), tokens),
        ],
        ignore_index=True,
    )


def of_forms(asked: pd.DataFrame) -> pd.DataFrame:
    """Lines of value_form. `asked`: document, kind, and written (bool: whether an identifier of the kind's form was)."""
    return _sums("value_form", asked, asked["written"].to_numpy(np.float64), np.ones(len(asked), np.int64))


def measure(sums: pd.DataFrame, reason: str | None = None) -> list[Measurement]:
    """All metrics, and those of `OF_KINDS` by kind. `sums`: lines as the functions above make them.

    `reason`: why nothing was measured at all.
    """
    measured = []
    for metric in METRICS:
        of_metric = sums[sums["metric"] == metric]
        nothing = reason or _NOTHING.get(metric.removesuffix("_probability"), "no values in control documents")
        measured.append(_ratio(metric, of_metric, {}, nothing))
        if metric in OF_KINDS:
            measured += [
                _ratio(metric, of_kind, {"kind": str(kind)}, nothing) for kind, of_kind in of_metric.groupby("kind")
            ]
    return measured


def _ratio(metric: str, sums: pd.DataFrame, group: dict[str, str], nothing: str) -> Measurement:
    total, count = sums["total"].to_numpy(np.float64), sums["count"].to_numpy(np.float64)
    if not count.sum():
        return Measurement(metric, POPULATION, None, None, None, 0, group, nothing)
    low, high = bootstrap_by_document(total, count, sums["document"].to_numpy())
    found = (float(total.sum() / count.sum()), low, high)
    value, low, high = map(float, np.exp(found)) if metric == "value_rank" else found
    return Measurement(metric, POPULATION, value, low, high, int(count.sum()), group)


def _sums(metric: str, spans: pd.DataFrame, total: np.ndarray, count: np.ndarray) -> pd.DataFrame:
    """Of each document and kind. total: float64 [spans], count: int64 [spans]."""
    lines = pd.DataFrame(
        {"kind": spans["kind"].to_numpy(), "document": spans["document"].to_numpy(), "total": total, "count": count}
    )
    if lines.empty:
        return EMPTY
    summed = lines.groupby(["kind", "document"], as_index=False, sort=True).sum()
    summed.insert(0, "metric", metric)
    return summed
