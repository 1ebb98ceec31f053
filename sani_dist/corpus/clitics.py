"""What some languages write onto a word: particles behind it in Korean, prefixes before it in Arabic and Hebrew."""

from __future__ import annotations

import re
from itertools import pairwise, product

import numpy as np

_TITLES = ("", "씨", "님", "군", "양", "선생님", "교수님", "환자")
_PARTICLES = re.split(
    r"\s+",
    "은 는 이 가 을 를 의 에 에게 에서 에게서 한테 한테서 께 께서 와 과 랑 이랑 하고 도 만 로 으로 부터 까지 처럼 "
    "보다 마다 조차 라고 이라고 라는 이라는 라 이라 이다 입니다 이었다 였다 에는 에게는 에서는 께서는 와는 과는 "
    "에도 에게도 만은 으로는 로는 이가 이는 이를 이의 이와 이도",
)
_BEHIND = frozenset(map("".join, product(_TITLES, ("", *_PARTICLES)))) - {""}
_LONGEST = max(map(len, _BEHIND))
# And, then, in, to, like; the article.
_BEFORE_ARABIC = frozenset(
    map("".join, product(("", "و", "ف"), ("", "ب", "ك", "ل"), ("", "ال")))
) | {"لل", "ولل", "فلل"}  # fmt: skip
_BEFORE_HEBREW = frozenset(map("".join, product(("", "\u05d5"), ("", "ב", "ל", "מ", "כ", "ש", "ה", "שה", "מה"))))
_BEFORE = (_BEFORE_ARABIC | _BEFORE_HEBREW) - {""}
# So much of a word has to be left: names of two syllables, roots of three consonants.
_LEAST_KOREAN, _LEAST_SEMITIC = 2, 3
_KOREAN = re.compile("[\uac00-\ud7a3]{3,}")
_SEMITIC = re.compile("[\u05d0-\u05ea]{4,}|[\u0620-\u064a\u066e-\u06d3]{4,}")


def clitic_borders(text: str, border: np.ndarray) -> list[int]:
    """The places of a folded text where a word ends and its particles begin, or its prefixes end. `border`: bool, those known."""
    places: list[int] = []
    for match in _KOREAN.finditer(text):
        for start, end in _words(match, border):
            least = max(start + _LEAST_KOREAN, end - _LONGEST)
            places += [place for place in range(least, end) if text[place:end] in _BEHIND]
    for match in _SEMITIC.finditer(text):
        for start, end in _words(match, border):
            places += [
                start + size
                for size in range(1, min(5, end - start - _LEAST_SEMITIC + 1))
                if text[start : start + size] in _BEFORE
            ]
    return places


def _words(match: re.Match[str], border: np.ndarray) -> list[tuple[int, int]]:
    start, end = match.span()
    inner = start + 1 + np.flatnonzero(border[start + 1 : end])
    return list(pairwise([start, *inner.tolist(), end]))
