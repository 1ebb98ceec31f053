"""How the use that must stay has changed: two models compared document by document.

As with perplexity, documents differ far more from each other than two models do on one document, so the interval is paired.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from sani_dist.audit.measurement import Measurement, paired_by_document
from sani_dist.audit.use import METRICS, POPULATION
from sani_dist.report.rise import FEWEST_DOCUMENTS

# What a model is compared with, in a measurement's group.
AGAINST = "against"


def use_changes(after: pd.DataFrame, other: pd.DataFrame, against: str) -> Iterator[Measurement]:
    """Relative change of each metric of `audit.use` against another model, 0.05 for 5 % more; what one of the two has not is left out.

    Log-probabilities are negative: a change of -0.15 says that an identifier is less likely, its log-probability 15 % further from 0.
    `after`, `other`: sums by metric, kind and document, as `audit.use` makes them. `against`: "before" or "base". `n` is the number of
    documents; fewer than FEWEST_DOCUMENTS give a reason instead of a value.
    """
    keys = ["metric", "kind", "document"]
    both = other.merge(after, on=keys, suffixes=("", "_after"), validate="one_to_one")
    for metric in METRICS:
        here = both[both["metric"] == metric]
        if len(here):
            yield _change(metric, here, {AGAINST: against})


def _change(metric: str, both: pd.DataFrame, group: dict[str, str]) -> Measurement:
    documents = both["document"].nunique()
    if documents < FEWEST_DOCUMENTS:
        reason = f"{documents} documents; an interval needs {FEWEST_DOCUMENTS}"
        return Measurement(metric, POPULATION, None, None, None, documents, group, reason)
    total, count = both["total"].to_numpy(np.float64), both["count"].to_numpy(np.float64)
    total_after, document = both["total_after"].to_numpy(np.float64), both["document"].to_numpy()
    if metric == "value_rank":  # sums of logarithms
        ends = np.expm1(paired_by_document(total_after - total, count, document))
    elif not total.sum():
        return Measurement(metric, POPULATION, None, None, None, documents, group, "it was 0: no change can be told")
    else:
        sign = -1 if metric == "value_logprob" else 1
        ends = sign * (np.array(paired_by_document(total_after, total, document)) - 1)
    value, *around = map(float, ends)
    return Measurement(metric, POPULATION, value, min(around), max(around), documents, group)
