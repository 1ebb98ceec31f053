"""The form of an identifier: what any value of its kind looks like, whoever it points at.

    "QX-1043" -> AA - 9999          "Ida Holm" -> Aa " " Aa          "3 Elm Row" -> 9 " " Aa " " Aa

Digits and blocks of up to three capitals count, since codes have so many; words do not, since names have any length.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_RUN = re.compile(r"\d+|[^\W\d_]+|[^\S\n]+|.", re.DOTALL)
_CODE = 3  # longer blocks of capitals are words

Form = tuple[str, ...]


def form(text: str) -> Form:
    """One item for each run of digits, letters or spaces of a text, and for each other character."""
    return tuple(map(_item, _RUN.findall(text)))


def forms(values: Iterable[str]) -> set[Form]:
    """Those of the values, without the empty one."""
    return {form(value.strip()) for value in values} - {()}


def begins_with_form(text: str, known: Collection[Form]) -> bool:
    """Whether a text begins with one of the forms and cuts no run in two there. Spaces before it do not count; a line break does."""
    items = form(text.lstrip(" \t"))
    return any(items[:length] in known for length in {len(one) for one in known} if length <= len(items))


def _item(run: str) -> str:
    if run.isdigit():
        return "9" * len(run)
    if run == "\n" or not (run.isalpha() or run.isspace()):
        return run
    if run.isspace():
        return " "
    if run.isupper():
        return "A" * min(len(run), _CODE + 1)
    return "a" if run.islower() else "Aa"
