"""Whether the text to be forgotten still stands out from text that no training ever saw: what `repair.until_control` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sani_dist.audit.extraction import leaks, score_spans
from sani_dist.audit.kinds import comparable
from sani_dist.audit.measurement import difference_by_document
from sani_dist.audit.roc import FEWEST_DOCUMENTS, auc, auc_interval
from sani_dist.audit.scores import score_views
from sani_dist.audit.spans import SPLITS
from sani_dist.corpus.rows import SENSITIVE, PackedRows
from sani_dist.engine.zero3 import Engine

# Samples that an attacker draws, and the area under the curve of one who guesses.
SAMPLES = 100
GUESSING = 0.5
# A mean leak that is higher by less than this is no leak that anyone could use, however sure it is to be higher.
NEGLIGIBLE = 1e-3


@dataclass(frozen=True)
class ControlComparison:
    """Mean leak by `SAMPLES` samples of the sensitive spans and of the control, the 95 % interval of their difference, and the area under
    the curve of membership by the spans' loss with its interval. All None where there are too few documents to tell."""

    leak: float | None = None
    control: float | None = None
    low: float | None = None
    high: float | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None

    @property
    def at_control(self) -> bool:
        """Neither measure is above its control. Too little to tell is not enough."""
        if self.low is None or self.auc_low is None:
            return False
        return self.low <= NEGLIGIBLE and self.auc_low <= GUESSING


def compare_with_control(
    engine: Engine, rows: Mapping[str, PackedRows], spans: pd.DataFrame, micro_rows: int
) -> ControlComparison:
    """One forward pass over the sensitive tokens of repair and control. Every rank has the same result. `spans`: as `Corpus.spans`."""
    tables = []
    for split in SPLITS.values():
        scores = score_views(engine, rows[split], micro_rows, (lambda hidden: hidden,), roles=(SENSITIVE,))[0]
        here = spans[(spans["split"] == split) & ~spans["in_context"]]
        tables.append(score_spans(scores, here))
    return compare(*tables)


def compare(sensitive: pd.DataFrame, control: pd.DataFrame) -> ControlComparison:
    """Of spans as `score_spans` gives them. Those of a kind without a control may leak, but tell nothing of membership."""
    of_kinds = comparable(sensitive, control)
    if min(table["document"].nunique() for table in of_kinds) < FEWEST_DOCUMENTS:
        return ControlComparison()
    leak = [leaks(table, SAMPLES) for table in (sensitive, control)]
    low, high = difference_by_document(
        leak[0], sensitive["document"].to_numpy(), leak[1], control["document"].to_numpy()
    )
    # Mean log-probability of a span's tokens, as the loss attack of the audit takes it.
    loss = [(table["logprob"] / (table["end"] - table["first"])).to_numpy() for table in of_kinds]
    documents = [table["document"].to_numpy() for table in of_kinds]
    area, error = auc(*loss, *documents)
    ends = auc_interval(area, error, min(len(np.unique(d)) for d in documents))
    return ControlComparison(float(leak[0].mean()), float(leak[1].mean()), low, high, area, *ends)
