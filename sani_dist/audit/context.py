"""Which spans a model could copy from the text before them: reproducing those is no memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from sani_dist.corpus.fold import value_key


def stands_before(spans: pd.DataFrame, texts: Iterable[tuple[int, str]]) -> pd.Series:
    """Whether each span's value occurs in its document before it, whatever its case and spacing: bool, indexed like `spans`.

    `spans`: document, start, end (code points). `texts`: (document, text), streamed; only documents with spans are looked at.
    """
    result = np.zeros(len(spans), dtype=bool)
    start, end = spans["start"].to_numpy(), spans["end"].to_numpy()
    of_document: dict[int, list[int]] = {}
    for place, document in enumerate(spans["document"].to_numpy()):
        of_document.setdefault(int(document), []).append(place)
    for document, text in texts:
        for place in of_document.get(document, []):
            result[place] = value_key(text[start[place] : end[place]]) in value_key(text[: start[place]])
    return pd.Series(result, index=spans.index)
