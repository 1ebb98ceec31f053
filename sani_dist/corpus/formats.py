"""Other values that a structured value could have been: same length, same punctuation, letters and digits drawn anew; dates stay dates."""

from __future__ import annotations

import random
import re
from datetime import date, timedelta

CANARY = "CANARY"
# Fewer digits are an age or a count: too few values to speak of a rank.
FEWEST_DIGITS = 4
# A date is drawn from so many days before and after the true one: who asks knows roughly when.
DAYS = 5 * 365
_YEARS = (1800, 2200)

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"
)  # fmt: skip
_MONTH = "|".join((*_MONTHS, *(name[:3] for name in _MONTHS)))
_DATES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})",
        r"(?P<month>\d{1,2})(/)(?P<day>\d{1,2})\2(?P<year>\d{4})",
        r"(?P<day>\d{1,2})([-/.])(?P<month>\d{1,2})\2(?P<year>\d{4})",
        rf"(?P<day>\d{{1,2}})\.? (?P<name>{_MONTH})\.?,? (?P<year>\d{{4}})",
        rf"(?P<name>{_MONTH})\.? (?P<day>\d{{1,2}}),? (?P<year>\d{{4}})",
    )
)
# Numbers, with blocks of at most three capitals: AB-123456, (020) 7946-0018. Longer words are no random letters.
_NUMBER = re.compile(r"(?:[A-Z]{1,3}(?![A-Za-z])|\d|[ ()/.#+-])+")
_CLASSES = ("0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


def is_structured(kind: str, value: str) -> bool:
    """Whether `alternatives` can be drawn: a date, a number with at least four digits, or whatever is marked as a canary.

    Of kinds that are dates by name, only whole dates: random digits would be no year, as they would be no IP address.
    """
    if kind == CANARY:
        return any(c in letters for c in value for letters in _CLASSES)
    if _date(value) is not None:
        return True
    if "DATE" in kind or kind == "IP_ADDRESS" or _NUMBER.fullmatch(value) is None:
        return False
    return sum(character in _CLASSES[0] for character in value) >= FEWEST_DIGITS


def alternatives(kind: str, value: str, count: int, draw: random.Random) -> tuple[str, ...]:
    """`count` different values of the format of `value`, itself left out; all there are, if they are fewer."""
    found = _date(value) if kind != CANARY else None
    if found is not None:
        days = _other_days(*found)
        return tuple(_write_date(found[0], day) for day in draw.sample(days, min(count, len(days))))
    others: dict[str, None] = {}  # in the order drawn
    while len(others) < min(count, _size(value) - 1):
        other = _other_value(value, draw)
        if other != value:
            others[other] = None
    return tuple(others)


def _size(value: str) -> int:
    size = 1
    for character in value:
        size *= next((len(letters) for letters in _CLASSES if character in letters), 1)
    return size


def _other_value(value: str, draw: random.Random) -> str:
    return "".join(
        draw.choice(next((letters for letters in _CLASSES if character in letters), character)) for character in value
    )


def _date(value: str) -> tuple[re.Match[str], date] | None:
    """The layout of a date and the day it names. Where day and month could be exchanged, the first layout that fits counts."""
    for layout in _DATES:
        match = layout.fullmatch(value)
        if match is None:
            continue
        parts = match.groupdict()
        name = parts.get("name")
        month = int(parts["month"]) if name is None else 1 + [m[:3] for m in _MONTHS].index(name[:3])
        year, day = int(parts["year"]), int(parts["day"])
        try:
            if _YEARS[0] <= year <= _YEARS[1]:
                return match, date(year, month, day)
        except ValueError:  # no such day, or day and month the other way round
            continue
    return None


def _other_days(match: re.Match[str], day: date) -> list[date]:
    """Days around `day` that take as many digits as it does: 3 March stays below the 10th, so nothing depends on how 3 is padded."""
    around = (day + timedelta(days=shift) for shift in range(-DAYS, DAYS + 1) if shift)
    numeric = "month" in match.groupdict()
    return [d for d in around if (d.day < 10) == (day.day < 10) and (not numeric or (d.month < 10) == (day.month < 10))]


def _write_date(match: re.Match[str], day: date) -> str:
    """`day` in the layout of `match`."""
    text = match.string
    for field in sorted(match.groupdict(), key=match.start, reverse=True):
        written = match[field]
        if field == "name":
            name = _MONTHS[day.month - 1]
            new = name if written in _MONTHS else name[:3]
        else:
            new = str(getattr(day, field)).zfill(len(written))
        text = text[: match.start(field)] + new + text[match.end(field) :]
    return text
