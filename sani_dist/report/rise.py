"""How much perplexity rose: before and after compared document by document.

Documents differ from each other far more than a model differs from itself before repair, so two separate intervals would hide any
change; the interval of the change is paired.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sani_dist.audit.measurement import Measurement, bootstrap_by_document

METRIC = "perplexity_rise"
# Resampling fewer documents than this gives intervals that are too short.
FEWEST_DOCUMENTS = 10


def perplexity_rise(split: str, before: pd.DataFrame, after: pd.DataFrame) -> Measurement:
    """Relative change of perplexity on a split, 0.05 for 5 % more: exp(mean change of a token's loss) - 1.

    `before`, `after`: split, document, loss (nats), tokens, one line per document, as `audit.losses` writes them. `n` is the number
    of documents; fewer than FEWEST_DOCUMENTS give a reason instead of a value.
    """
    here = before[before["split"] == split]
    both = here.merge(after[after["split"] == split], on="document", suffixes=("", "_after"), validate="one_to_one")
    if len(both) != max(len(here), int((after["split"] == split).sum())):
        return Measurement(
            METRIC, split, None, None, None, len(both), {}, "the two audits are not of the same documents"
        )
    if len(both) < FEWEST_DOCUMENTS:
        reason = f"{len(both)} documents; an interval needs {FEWEST_DOCUMENTS}"
        return Measurement(METRIC, split, None, None, None, len(both), {}, reason)
    if not np.isfinite(both[["loss", "loss_after"]].to_numpy()).all():
        return Measurement(METRIC, split, None, None, None, len(both), {}, "the loss of some is not a finite number")
    change, tokens = (both["loss_after"] - both["loss"]).to_numpy(), both["tokens"].to_numpy(dtype=np.float64)
    low, high = bootstrap_by_document(change, tokens, both["document"].to_numpy())
    value, low, high = (float(np.expm1(nats)) for nats in (change.sum() / tokens.sum(), low, high))
    return Measurement(METRIC, split, value, low, high, len(both), {})
