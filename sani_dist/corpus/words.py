"""The words of a text, in every script: what `rare_terms` counts.

In scripts without spaces nobody marks words. There a text is cut where the script changes, and its parts are pairs of characters that
overlap: a character is common if one of its pairs is, so what stays is what stands in no common pair (a name, mostly).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from itertools import groupby

# Han, Hiragana, Katakana; Thai, Lao, Tibetan, Burmese, Khmer.
_UNSPACED = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", "\u3041-\u309f", "\u30a0-\u30ff\u31f0-\u31ff",
    "\u0e00-\u0e7f", "\u0e80-\u0eff", "\u0f00-\u0fff", "\u1000-\u109f", "\u1780-\u17ff",
)  # fmt: skip


def _marks() -> str:
    """The combining marks, and the joiners within words, as ranges of a character class."""
    codes = [c for c in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(c))[0] == "M"]
    ranges = []
    for _, run in groupby(enumerate([*codes, 0x200C, 0x200D]), lambda pair: pair[1] - pair[0]):
        found = [code for _, code in run]
        ranges.append(f"{chr(found[0])}-{chr(found[-1])}")
    return "".join(ranges)


# Letters, digits and marks, joined by an inner apostrophe or hyphen: o'brien, x-linked.
_PART = rf"(?:(?!_)[\w{_marks()}\u00ad])+"
_WORD = re.compile(rf"{_PART}(?:['\u2019\u2010\u2011-]{_PART})*")
_RUN = re.compile("|".join(f"[{script}]+" for script in _UNSPACED))


def words(text: str) -> Iterator[tuple[int, int, bool]]:
    """Yield [start, end) of each word, and whether it is a run of a script without spaces, of which nobody knows the words."""
    for match in _WORD.finditer(text):
        start, end = match.span()
        for run in _RUN.finditer(text, start, end) if not match[0].isascii() else ():
            if start < run.start():
                yield start, run.start(), False
            yield *run.span(), True
            start = run.end()
        if start < end:
            yield start, end, False
