"""Whose record it is: one name for one person, however a table writes it."""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Any

# How tables write that nobody is named. A surname Null is lost to this, which protects more, never less.
_NOBODY = frozenset({"", "nan", "null", "none", "nat", "n/a", "<na>"})
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")


def subject_of(value: Any) -> str | None:
    """The subject that a cell names: 17, 17.0, "17" and " 17 " are one. None: nobody (null, NaN, an empty cell).

    Raises `ValueError` for a value that names nobody and is not empty, such as a list.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if isinstance(value, dict | list | tuple):
        raise ValueError("a subject is a text or a number")
    if isinstance(value, float | Decimal):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        if value == int(value):
            value = int(value)
    # Half of a character (\ud800 in JSON) cannot be written to a table; as an escape it stays itself.
    text = str(value).encode("utf-8", "backslashreplace").decode()
    text = unicodedata.normalize("NFKC", text).strip()
    if value is None or text.casefold() in _NOBODY:
        return None
    whole = _WHOLE.fullmatch(text)
    return text if whole is None else whole[1]
