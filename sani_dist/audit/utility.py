"""What the model is still worth: perplexity on learnable tokens."""

from __future__ import annotations

import numpy as np

from sani_dist.audit.measurement import Measurement, bootstrap_by_document
from sani_dist.audit.scores import TokenScores
from sani_dist.corpus.rows import LEARN, PackedRows


def perplexity(split: str, scores: TokenScores, rows: PackedRows) -> Measurement:
    """exp(mean -log p) over the learnable tokens of a split; the interval resamples documents."""
    batch = rows.batch(range(len(rows)))
    learnable = (batch.role.numpy() == LEARN) & ~np.isnan(scores.logprob)
    nll = -scores.logprob[learnable].astype(np.float64)
    if not nll.size:
        return Measurement("perplexity", split, None, None, None, 0, {}, "no learnable tokens")
    low, high = bootstrap_by_document(nll, np.ones(nll.size), batch.document.numpy()[learnable])
    return Measurement(
        "perplexity", split, float(np.exp(nll.mean())), float(np.exp(low)), float(np.exp(high)), nll.size, {}
    )
