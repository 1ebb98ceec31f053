"""Text as values are compared, with the way back to the original. docs/detection.md says what is equated and what is not.

Folding leaves letters, digits and signs; what people write between them now so, now otherwise is left out:

- letters: NFKC, case folded, without the accents of Latin, Greek, Arabic and Hebrew; decimal digits of all scripts are 0 to 9
- apostrophes and invisible characters vanish
- white space, hyphens and underscores are one separator: a space between two letters, and nothing elsewhere; so is the full stop of an
  initial

Where something vanished there is still a border of words, and a value has to begin and end at such. There are two kinds: hard ones, and
soft ones within what is written as one word (MRN00412345, IgnatzVollbrecht), where only values of some length may begin or end.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sani_dist.corpus.clitics import clitic_borders
from sani_dist.corpus.escapes import unescaped

NO_BORDER, SOFT, HARD = 0, 1, 2
# Values of fewer characters do not begin or end at a soft border: 12 is not in B12, nor Ann in JoAnn.
LEAST_AT_SOFT = 4
# Of values of fewer characters separators beside digits count: 7 1 and 1-2 are not 71 and 12, but 943 476 5919 is 9434765919.
LEAST_JOINED = 6
# In a key, what follows it says between which characters of a short value separators stand.
_GAPS = "\0"

# Classes of the characters of a folded text.
_VANISHES, _SEPARATES, _OTHER, _DIGIT, _LETTER, _HANGUL, _UNSPACED = range(7)
_SPACE, _NOTHING, _APART = 0x20, 0, 1
_APOSTROPHES = "'`\u00b4\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02bd\u2032\u2035\uff07\u05f3\ua78c"
_HYPHENS = "-_\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\u058a\u05be\ufe58\ufe63\uff0d\u30fb\uff65"
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_LEFT_OUT = (chr(_SPACE), chr(_NOTHING))
# Scripts written without spaces between words: there a value may stand anywhere.
_OF_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_OF_HANGUL = re.compile("[\u1100-\u11ff\uac00-\ud7a3]")
# Letters that are no other with a mark, and what is written where there is no key for them. The last: all four Turkish i are one.
_LATIN = str.maketrans(
    {"ł": "l", "đ": "d", "ø": "o", "ħ": "h", "ŧ": "t", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "\u0131": "i"}
)
# Vowel signs that are mostly left out, the lengthening stroke, and the hamza and madda on a letter.
_POINTS = re.compile("[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u0655\u0670]")
_CASELESS, _UPPER, _LOWER = 0, 1, 2


@dataclass(frozen=True)
class Folded:
    """Folded text. Its character i came from code points [starts[i], ends[i]) of the original.

    border: uint8 [characters + 1], NO_BORDER, SOFT or HARD before each character and at the end.
    gaps: bool [characters], whether a separator was left out before a character that is a digit or follows one.
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray
    border: np.ndarray
    gaps: np.ndarray

    def origin(self, start: int, end: int) -> tuple[int, int]:
        """Map the non-empty folded range [start, end) to the original range that it came from."""
        return int(self.starts[start]), int(self.ends[end - 1])

    def stands_alone(self, start: int, end: int) -> bool:
        """Whether the range [start, end) cuts no word in two."""
        least = HARD if end - start < LEAST_AT_SOFT else SOFT
        return bool(self.border[start] >= least and self.border[end] >= least)

    def gaps_of(self, start: int, end: int) -> str:
        """What a key has of the separators in [start, end): empty but for short values with separators beside digits."""
        if end - start >= LEAST_JOINED or not (inner := self.gaps[start + 1 : end]).any():
            return ""
        return _GAPS + "".join("-" if gap else "." for gap in inner)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a text, not some of its words."""
        return chr(_APART) not in self.text

    @property
    def key(self) -> str:
        """The text as a value."""
        return self.text + self.gaps_of(0, len(self.text))


def fold(text: str) -> Folded:
    """Fold `text`, so that the spellings of one value become equal."""
    return next(_joined(text))


def views(text: str) -> tuple[Folded, ...]:
    """`text` folded, and folded as it may be meant: escapes undone and broken words joined; words in camel case apart.

    All lead back to the same text; what stands in one of them stands in it.
    """
    found = [*_joined(text)]
    meant, starts, ends = unescaped(text)
    if meant != text:
        for view in _joined(meant):
            found.append(Folded(view.text, starts[view.starts], ends[view.ends - 1], view.border, view.gaps))
    return tuple(found)


def value_key(value: str) -> str:
    """Return the folded form by which two occurrences of one value are recognised; may be empty."""
    if not value.isascii():
        return _key(value)
    # The same by regular expressions: values are short, and there are many.
    key = _VANISHING.sub("", _INITIAL.sub(r"\1 ", value.lower()))
    joined = _ELSEWHERE.sub("", _BETWEEN_LETTERS.sub("\0", key)).replace("\0", " ")
    return joined if joined == key or len(joined) >= LEAST_JOINED else _key(value)


@lru_cache(2**9)
def value_keys(value: str) -> tuple[str, ...]:
    """The keys under which a value is looked for: those of all its views that have the whole of it; none is empty."""
    if _PLAIN.fullmatch(value):
        return (value_key(value),)
    found = views(value)
    whole = found[0].origin(0, len(found[0].text)) if found[0].text else ()
    return tuple(sorted({v.key for v in found if v.text and v.is_whole and v.origin(0, len(v.text)) == whole}))


def text_of_key(key: str) -> str:
    """The folded text of a key."""
    return key.partition(_GAPS)[0]


def gaps_of_key(key: str) -> str:
    """What `Folded.gaps_of` says of a value with this key."""
    return key[len(text_of_key(key)) :]


_INITIAL = re.compile(r"(?<![a-z])([a-z])\.")
_VANISHING = re.compile(r"['`\x00-\x08\x0e-\x1b\x7f]")
_BETWEEN_LETTERS = re.compile(r"(?<=[a-z])[\s_-]+(?=[a-z])")
_ELSEWHERE = re.compile(r"[\s_-]+")
# In no value of this form is camel case or an escape.
_PLAIN = re.compile(r"(?:[A-Z]?[a-z]+|[A-Z]+)(?:[ '-](?:[A-Z]?[a-z]+|[A-Z]+))*|[A-Z]{0,4}[ -]?[0-9]+")


@lru_cache(2**9)
def _key(value: str) -> str:
    return fold(value).key


# What `_unicode` knows of each code point that it has met: what it folds to if that is one character by itself (else _CLUSTER), and so on.
_UNKNOWN, _CLUSTER = -2, -1
_FOLDED = np.full(sys.maxunicode + 1, _UNKNOWN, np.int32)
_JOINS = np.zeros(sys.maxunicode + 1, bool)
_EDGE = np.zeros(sys.maxunicode + 1, bool)
_CASE = np.zeros(sys.maxunicode + 1, np.uint8)
_CLASS = np.full(sys.maxunicode + 1, 255, np.uint8)

_Characters = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _ascii(text: str) -> _Characters:
    """Folded code points, the original range [start, end) of each, the case it had, and whether it is apart from its neighbours."""
    codes = np.frombuffer(text.encode("ascii"), np.uint8)
    starts = np.arange(len(codes) + 1)
    return _ASCII[codes], starts[:-1], starts[1:], _CASE[codes], np.zeros(len(codes), bool)


def _unicode(text: str) -> _Characters:
    # A normal form joins a character with the marks that follow it, so the unit of the map is such a cluster.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    folded = _FOLDED[codes]
    if (folded == _UNKNOWN).any():
        for code in np.unique(codes[folded == _UNKNOWN]).tolist():
            _learn(code)
        folded = _FOLDED[codes]
    starts = np.arange(len(codes))
    joins = _JOINS[codes]
    alone = folded != _CLUSTER
    alone[:-1] &= ~joins[1:]
    alone &= ~joins
    if alone.all():
        return folded, starts, starts + 1, _CASE[codes], _EDGE[codes]
    first = ~joins  # of a cluster
    first[0] = True
    at = np.flatnonzero(first)
    ends = np.append(at[1:], len(codes))
    hard = np.flatnonzero(~alone[at])
    pieces = [_fold_cluster(text[at[i] : ends[i]]) for i in hard]
    counts = np.ones(len(at), np.int64)
    counts[hard] = [len(piece) for piece in pieces]
    cluster = np.repeat(np.arange(len(at)), counts)
    folded = folded[at[cluster]]
    made = np.zeros(len(at), bool)
    made[hard] = True
    folded[made[cluster]] = [ord(character) for piece in pieces for character in piece]
    case = np.where(np.diff(cluster, prepend=-1) > 0, _CASE[codes[at[cluster]]], _CASELESS)
    return folded, at[cluster], ends[cluster], case, _EDGE[codes[at[cluster]]]


def _learn(code: int) -> None:
    """Fill the tables for a code point."""
    character = chr(code)
    _JOINS[code] = code > 0x7F and _joins_previous(character)
    _EDGE[code] = unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<circle>", "<square>"))
    category = unicodedata.category(character)
    _CASE[code] = {"Lu": _UPPER, "Lt": _UPPER, "Ll": _LOWER}.get(category, _CASELESS)
    piece = _fold_cluster(character)
    _FOLDED[code] = ord(piece) if len(piece) == 1 else _CLUSTER


@lru_cache(maxsize=65536)
def _fold_cluster(cluster: str) -> str:
    """What a character and its marks become; separators are spaces, and what vanishes is a NUL."""
    if (first := _as_written(cluster[0])) in _LEFT_OUT:
        return first + (_fold_cluster(cluster[1:]) if len(cluster) > 1 else "")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", cluster).casefold())
    plain = _without_accents(folded).translate(_LATIN)
    return "".join(map(_as_written, plain)) or chr(_NOTHING)


def _as_written(character: str) -> str:
    if character in _APOSTROPHES or _is_invisible(character):
        return chr(_NOTHING)
    if character in _HYPHENS or character.isspace():
        return chr(_SPACE)
    digit = unicodedata.decimal(character, None)
    return character if digit is None else str(digit)


def _without_accents(text: str) -> str:
    kept, base = "", ""
    for character in unicodedata.normalize("NFD", text):
        if unicodedata.combining(character) and (_takes_accents(base) or (base, character) == ("\u0435", "\u0308")):
            continue
        if _POINTS.match(character):
            continue
        base = base if unicodedata.combining(character) else character
        kept += character
    return unicodedata.normalize("NFC", kept)


@lru_cache(maxsize=65536)
def _takes_accents(base: str) -> bool:
    return bool(base) and unicodedata.name(base, "").startswith(("LATIN", "GREEK"))


def _is_invisible(character: str) -> bool:
    if _INVISIBLE.match(character):
        return True
    return unicodedata.category(character) in ("Cf", "Cc") and not character.isspace()


@lru_cache(maxsize=65536)
def _joins_previous(character: str) -> bool:
    first = unicodedata.normalize("NFKD", character)[0]
    # Marks of every kind, and the vowels and final consonants of Hangul, which are letters but compose all the same.
    return unicodedata.category(first)[0] == "M" or "\u1161" <= first <= "\u1175" or "\u11a8" <= first <= "\u11c2"


def _class(character: str) -> int:
    if character == chr(_NOTHING):
        return _VANISHES
    if character == chr(_SPACE):
        return _SEPARATES
    if _OF_UNSPACED.match(character):
        return _UNSPACED if character.isalnum() or unicodedata.category(character)[0] == "M" else _OTHER
    if _OF_HANGUL.match(character):
        return _HANGUL
    if unicodedata.category(character)[0] in "LM":
        return _LETTER
    return _DIGIT if character.isalnum() else _OTHER


def _classes(codes: np.ndarray) -> np.ndarray:
    classes: np.ndarray = _CLASS[codes]
    if (classes == 255).any():
        for code in np.unique(codes[classes == 255]).tolist():
            _CLASS[code] = _class(chr(code))
        classes = _CLASS[codes]
    return classes


def _joined(whole: str) -> Iterator[Folded]:
    """Leave out what vanishes and separators, but for one between letters, and yield the text; then its words in camel case apart."""
    codes, starts, ends, case, edge = _ascii(whole) if whole.isascii() else _unicode(whole)
    classes = _classes(codes)
    _separate_initials(codes, classes)
    separators = np.flatnonzero(classes == _SEPARATES)
    solid = np.flatnonzero(classes > _SEPARATES)
    keep = classes > _SEPARATES
    gap_before = np.zeros(len(codes), bool)
    if len(separators) and len(solid):
        left, right = solid[:-1], solid[1:]
        following = np.searchsorted(separators, left)  # the first separator after the character
        apart = np.append(separators, len(codes))[following] < right
        letters = (classes[left] == _LETTER) & (classes[right] == _LETTER)
        spaces = separators[following[apart & letters]]
        keep[spaces], codes[spaces] = True, _SPACE
        gap_before[right[apart & ((classes[left] == _DIGIT) | (classes[right] == _DIGIT))]] = True
    kept = np.flatnonzero(keep)
    codes, classes, case, edge = codes[kept], classes[kept], case[kept], edge[kept]
    text = codes.astype(np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    starts, ends = starts[kept], ends[kept]
    border, camel = _borders(kept, classes, case, edge, starts, text)
    folded = Folded(text, starts, ends, border, gap_before[kept])
    yield folded
    if len(camel):
        yield _apart(folded, camel)


def _separate_initials(codes: np.ndarray, classes: np.ndarray) -> None:
    """The full stop after a single letter separates."""
    stops = np.flatnonzero(codes == ord("."))
    stops = stops[stops > 0]
    stops = stops[classes[stops - 1] == _LETTER]
    single = (stops < 2) | (classes[stops - 2] != _LETTER)
    classes[stops[single]] = _SEPARATES


def _borders(
    kept: np.ndarray, classes: np.ndarray, case: np.ndarray, edge: np.ndarray, starts: np.ndarray, text: str
) -> tuple[np.ndarray, np.ndarray]:
    """Borders uint8 [characters + 1], and the places where the case alone says that a word begins.

    kept: the places of the characters before anything was left out.
    """
    border = np.full(len(classes) + 1, HARD, np.uint8)
    camel = np.empty(0, np.int64)
    if len(classes) > 1:
        left, right = classes[:-1], classes[1:]
        of_a_word = ((left == _LETTER) | (left == _DIGIT) | (left == _HANGUL)) & (
            (right == _LETTER) | (right == _DIGIT) | (right == _HANGUL)
        )
        one = of_a_word & (np.diff(kept) == 1) & ~((edge[:-1] | edge[1:]) & (np.diff(starts) > 0))
        begins = (case[:-1] == _LOWER) & (case[1:] == _UPPER)
        begins[:-1] |= (case[:-2] == _UPPER) & (case[1:-1] == _UPPER) & (case[2:] == _LOWER)
        camel = np.flatnonzero(one & begins) + 1
        soft = (left == _DIGIT) != (right == _DIGIT)
        border[1:-1] = np.where(one, np.where(soft, SOFT, NO_BORDER), HARD)
        camel = camel[[not _is_prefix(text, border, int(place)) for place in camel]] if len(camel) else camel
        border[camel] = SOFT
    if not text.isascii():
        border[clitic_borders(text, border == HARD)] = HARD
    return border, camel


def _is_prefix(text: str, border: np.ndarray, place: int) -> bool:
    """Whether what stands before a capital is the Mc or Mac of a name."""
    return any(text.endswith(prefix, 0, place) and border[place - len(prefix)] == HARD for prefix in ("mc", "mac"))


def _apart(folded: Folded, camel: np.ndarray) -> Folded:
    """The words that have a border in camel case, with a space there; what is between two of them is a sign that no value has."""
    hard = np.flatnonzero(folded.border == HARD)
    following = np.searchsorted(hard, camel, side="right")
    inner = set(camel.tolist())
    characters, places, added = list[str](), list[int](), list[bool]()
    for first, last in sorted(set(zip(hard[following - 1].tolist(), hard[following].tolist(), strict=True))):
        for place in range(first, last):
            if place in inner or (place == first and places):
                characters.append(chr(_SPACE if place in inner else _APART))
                places.append(place)
                added.append(True)
            characters.append(folded.text[place])
            places.append(place)
            added.append(False)
    starts, is_added = folded.starts[places], np.array(added)
    return Folded(
        "".join(characters),
        starts,
        np.where(is_added, starts, folded.ends[places]),
        np.append(folded.border[places], np.uint8(HARD)),
        folded.gaps[places] & ~is_added,
    )


for _code in range(0x80):
    _learn(_code)
_ASCII = _FOLDED[:0x80].copy()
