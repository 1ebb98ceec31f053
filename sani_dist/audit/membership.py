"""Membership inference: can what was trained on be told from what no training saw, by the model's probabilities alone?

Each attack gives a text, of a span or of a whole document, one score; members should score higher.

| attack | score | source |
|---|---|---|
| loss | mean log p of its tokens | Yeom et al., arXiv 1709.01604 |
| zlib | the same divided by the bytes that zlib makes of the text | Carlini et al., arXiv 2012.07805 |
| mink | mean log p of the 20 % least likely tokens | Shi et al., arXiv 2310.16789 |
| minkpp | the same of (log p - mean) / standard deviation, over the vocabulary at each place | Zhang et al., arXiv 2404.02936 |
| reference | mean log p less that of a reference model | Carlini et al., arXiv 2012.07805 |
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import pandas as pd

from sani_dist.audit.measurement import Measurement, clopper_pearson
from sani_dist.audit.roc import FEWEST_CONTROLS, FEWEST_DOCUMENTS, auc, auc_interval, hits_at_false_alarms
from sani_dist.audit.scores import TokenScores

ATTACKS = ("loss", "zlib", "mink", "minkpp", "reference")
# The share that both papers use most.
LEAST_LIKELY = 0.2
# Where the model is sure, rounding decides; the floor that open-unlearning sets for the same quantity.
LEAST_DEVIATION = 1e-3
# With a whole interval under it, members look less likely than text the model never saw: that too tells who they are.
OVER_UNLEARNING = 0.45

NO_TEXTS = pd.DataFrame({"document": pd.Series(dtype=np.int64)})


def attack_scores(
    logprob: np.ndarray,
    zlib_bytes: int,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> dict[str, float]:
    """Scores of one text by attack, of those that can be computed.

    logprob: of each token [n], n > 0; mean, std: of log p(z) over z drawn from p [n]; reference: log-probabilities by the reference model.
    """
    values = logprob.astype(np.float64)
    found = {"loss": values.mean(), "zlib": values.mean() / zlib_bytes, "mink": _least(values)}
    if mean is not None and std is not None:
        found["minkpp"] = _least((values - mean) / np.maximum(std, LEAST_DEVIATION))
    if reference is not None:
        found["reference"] = values.mean() - reference.astype(np.float64).mean()
    return {attack: float(score) for attack, score in found.items()}


def zlib_size(text: str) -> int:
    """Bytes of the compressed text."""
    return len(zlib.compress(text.encode("utf-8", "surrogatepass")))


def score_texts(
    scores: TokenScores,
    reference: TokenScores | None,
    places: Iterator[tuple[int, np.ndarray, np.ndarray, int]],
) -> pd.DataFrame:
    """One line per text: document and a column for each attack.

    `places`: document, rows [n] and columns [n] of the scored tokens of the text, bytes of the compressed text; n > 0.
    """
    lines = []
    for document, row, column, size in places:
        tables = (scores.mean_logprob, scores.std_logprob, None if reference is None else reference.logprob)
        mean, std, compared = (None if table is None else table[row, column] for table in tables)
        found = attack_scores(scores.logprob[row, column], size, mean, std, compared)
        lines.append({"document": document, **found})
    return pd.DataFrame(lines, columns=["document", *ATTACKS]).dropna(axis="columns", how="all")


def membership(population: str, members: pd.DataFrame, controls: pd.DataFrame) -> list[Measurement]:
    """Area under the curve and hits at 1 % false alarms of each attack that the members have a score of.

    Both tables as `score_texts` gives them.
    """
    measured = []
    for attack in ATTACKS:
        if attack in members:
            measured += [_auc(attack, population, members, controls), _hits(attack, population, members, controls)]
    return measured


def _auc(attack: str, population: str, members: pd.DataFrame, controls: pd.DataFrame) -> Measurement:
    metric, count = f"mia_{attack}_auc", len(members)
    documents = min(members["document"].nunique(), controls["document"].nunique())
    if documents < FEWEST_DOCUMENTS:
        side = "controls" if controls["document"].nunique() == documents else "members"
        too_few = f"too few {side}: {documents} documents, {FEWEST_DOCUMENTS} are needed"
        return Measurement(metric, population, None, None, None, count, {}, too_few)
    area, error = auc(
        members[attack].to_numpy(), controls[attack].to_numpy(),
        members["document"].to_numpy(), controls["document"].to_numpy(),
    )  # fmt: skip
    low, high = auc_interval(area, error, documents)
    reason = "over-unlearning: what was trained on stands out as less likely" if high < OVER_UNLEARNING else None
    return Measurement(metric, population, area, low, high, count, {}, reason)


def _hits(attack: str, population: str, members: pd.DataFrame, controls: pd.DataFrame) -> Measurement:
    metric, count = f"mia_{attack}_tpr", len(members)
    if len(controls) < FEWEST_CONTROLS or not count:
        reason = f"too few controls: {len(controls)}, {FEWEST_CONTROLS} are needed" if count else "no members"
        return Measurement(metric, population, None, None, None, count, {}, reason)
    hits = hits_at_false_alarms(members[attack].to_numpy(), controls[attack].to_numpy())
    low, high = clopper_pearson(hits, count)
    return Measurement(metric, population, hits / count, low, high, count, {})


def _least(values: np.ndarray) -> float:
    """Mean of the least 20 %, of at least one."""
    return float(np.sort(values)[: max(1, int(LEAST_LIKELY * len(values)))].mean())
