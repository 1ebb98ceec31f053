"""JSON from outside: no key twice, no depth that ends the interpreter, and arrays of any length an element at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sani_dist.corpus.lines import text_lines
from sani_dist.errors import InputError


class _TwiceError(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _TwiceError
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def json_object(line: str, where: str) -> Any:
    """The value of a line of JSONL. Raises `InputError`."""
    try:
        return _DECODER.decode(line)
    except _TwiceError:
        raise InputError(f"{where} has a key twice in one object; rename one of them") from None
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not valid JSON; expected one object a line") from None


def json_values(path: Path, where: str) -> Iterator[Any]:
    """Yield the elements of an array, or the values that follow each other, of which a file consists. Raises `InputError`."""
    text, at, number, in_array = "", 0, 0, False
    lines = (line for _, line in text_lines(path, where))
    while True:
        at = _after_space(text, at)
        if at == len(text):
            text, at = next(lines, ""), 0
            if not text:
                break
            continue
        if number == 0 and not in_array and text[at] == "[":
            in_array, at = True, at + 1
            continue
        if in_array and text[at] in ",]":
            in_array, at = text[at] == ",", at + 1
            if not in_array:
                break
            continue
        number += 1
        value, text, at = _next_value(text, at, lines, f"{where}: record {number}")
        yield value
    if in_array or text[at:].strip() or any(line.strip() for line in lines):
        raise InputError(f"{where}: not one whole JSON array, or JSON values after each other; it may be cut")


def _next_value(text: str, at: int, lines: Iterator[str], where: str) -> tuple[Any, str, int]:
    """The value that starts at `at`, the text that it needed, with more lines than `text` has, and where it ends there."""
    while True:
        try:
            value, end = _DECODER.raw_decode(text, at)
            return value, text, end
        except _TwiceError:
            raise InputError(f"{where} has a key twice in one object; rename one of them") from None
        except RecursionError:
            raise InputError(f"{where} is nested too deeply") from None
        except ValueError:
            # As much again: a value of many lines is tried a few times, not once a line.
            more, wanted = list[str](), len(text) - at
            while wanted > 0 and (line := next(lines, "")):
                more.append(line)
                wanted -= len(line)
            if not more:
                raise InputError(f"{where} is not valid JSON") from None
            text, at = text[at:] + "".join(more), 0


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
