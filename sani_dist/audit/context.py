"""Which spans a model could copy from the text before them: reproducing those is no memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from sani_dist.corpus.fold import fold, value_key
from sani_dist.corpus.terms import TermMatcher


def stands_before(spans: pd.DataFrame, texts: Iterable[tuple[int, str]], or_after: bool = False) -> pd.Series:
    """Whether each span's value occurs in its document before it, whatever its case and spacing: bool, indexed like `spans`.

    `or_after`: or after it, for a model that sees both.

    An occurrence counts if it cuts no word in two: Ann stands in "Ann's" and not in "planned". Only letters and digits join to a
    word, so a value that ends in punctuation may stand against one, and in scripts without spaces, as Chinese, anywhere. This is
    how closure finds values too. One pass over each document finds all of its values.

    `spans`: document, start, end (code points). `texts`: (document, text), streamed; only documents with spans are looked at.
    """
    result = np.zeros(len(spans), dtype=bool)
    start, end = spans["start"].to_numpy(), spans["end"].to_numpy()
    of_document: dict[int, list[int]] = {}
    for place, document in enumerate(spans["document"].to_numpy()):
        of_document.setdefault(int(document), []).append(place)
    for document, text in texts:
        places = of_document.get(document)
        if places is None:
            continue
        keys = [value_key(text[start[place] : end[place]]) for place in places]
        first_end: dict[str, int] = {}
        last_end: dict[str, int] = {}
        # Occurrences come in the order of the text, so the first of a value is the one that ends first.
        for _, stop, key in TermMatcher((key, key) for key in set(keys)).find(fold(text)):
            first_end.setdefault(key, stop)
            last_end[key] = stop
        for place, key in zip(places, keys, strict=True):
            before, after = first_end.get(key, len(text) + 1) <= start[place], last_end.get(key, 0) > end[place]
            result[place] = before or (or_after and after)
    return pd.Series(result, index=spans.index)
