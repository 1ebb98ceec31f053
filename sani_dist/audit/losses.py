"""Loss of each document, so that two audits of the same text can be compared document by document.

Documents differ far more from each other than a model does from itself before repair: an interval of the change has to be paired.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sani_dist.audit.scores import TokenScores
from sani_dist.corpus.rows import LEARN, PackedRows


def document_losses(scores: Mapping[str, TokenScores], rows: Mapping[str, PackedRows]) -> pd.DataFrame:
    """One line per split and document: split, document, loss (sum of -log p of its learnable tokens, nats), tokens."""
    tables = [_losses(split, scores[split], rows[split]) for split in rows if split != "control"]
    columns = {"split": str, "document": np.int64, "loss": np.float64, "tokens": np.int64}
    empty = pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})
    return pd.concat(tables, ignore_index=True) if tables else empty


def _losses(split: str, scores: TokenScores, rows: PackedRows) -> pd.DataFrame:
    batch = rows.batch(range(len(rows)))
    learnable = (batch.role.numpy() == LEARN) & ~np.isnan(scores.logprob)
    document = batch.document.numpy()[learnable].astype(np.int64)
    loss = -scores.logprob[learnable].astype(np.float64)
    if scores.not_finite:  # which of the documents they are in is not known here
        loss[:] = np.nan
    summed = (
        pd.DataFrame({"document": document, "loss": loss, "tokens": 1})
        .groupby("document", as_index=False)
        .sum(min_count=1)
    )
    summed.insert(0, "split", split)
    return summed
