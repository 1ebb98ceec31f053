"""Canaries: random codes put into a text before a model is trained on it, so that its memory can be measured exactly.

A code is drawn uniformly, so how often it would be guessed is known, and no other document has it (Carlini et al., arXiv 1802.08232).
Codes of the same format that are put nowhere are their control.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sani_dist.corpus.formats import CANARY
from sani_dist.corpus.read import read_rows
from sani_dist.errors import InputError
from sani_dist.messages import column

SENTENCE = "\nReference code: {}."
# Nine digits in three groups: 10^9 codes.
_CODE = "{:03d}-{:03d}-{:03d}"


def write_canaries(
    source: str,
    out: Path,
    control: Path,
    *,
    count: int,
    repeats: int = 1,
    seed: int = 0,
    text: str = "text",
    spans: str = "spans",
) -> None:
    """Copy a corpus to `out` (JSONL) with `count` codes, each at the end of `repeats` documents, and write as many others to `control`.

    A document gets at most one. Their places are added to the column `spans`, with kind CANARY. The same seed gives the same files.
    Raises InputError for a source that cannot be read, whose columns are no text and no lists of spans, or that has fewer than
    count * repeats documents.
    """
    for path in (out, control):
        if path.exists():
            raise InputError(f"{path} exists; choose another name")
    draw = random.Random(seed)
    codes = _codes(draw, 2 * count)
    documents = sum(1 for _ in _rows(source, text, spans))
    if documents < count * repeats:
        raise InputError(
            f"{source} has {documents} documents; {count} canaries in {repeats} each need {count * repeats}"
        )
    chosen = draw.sample(range(documents), count * repeats)
    code_of = {place: codes[i % count] for i, place in enumerate(chosen)}
    with _private(out) as file:
        for place, row in enumerate(_rows(source, text, spans)):
            file.write(json.dumps(_with_code(row, code_of[place], text, spans) if place in code_of else row) + "\n")
    with _private(control) as file:
        for code in codes[count:]:
            file.write(json.dumps(_with_code({text: ""}, code, text, spans)) + "\n")


def _private(path: Path) -> IO[str]:
    """A new file that only its owner can read, whatever the umask."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror})") from None


def _codes(draw: random.Random, count: int) -> list[str]:
    """Different codes."""
    codes: dict[str, None] = {}  # in the order drawn
    while len(codes) < count:
        codes[_CODE.format(*(draw.randrange(1000) for _ in range(3)))] = None
    return list(codes)


def _rows(source: str, text: str, spans: str) -> Iterator[dict[str, Any]]:
    for number, row in read_rows(source):
        if not isinstance(row.get(text), str):
            raise InputError(f"{source}: record {number} has no text in {column(text)}")
        if not isinstance(row.get(spans) or [], list):
            raise InputError(f"{source}: record {number} has no list of spans in {column(spans)}")
        yield row


def _with_code(row: dict[str, Any], code: str, text: str, spans: str) -> dict[str, Any]:
    before, after = SENTENCE.split("{}")
    start = len(row[text] + before)
    span = {"start": start, "end": start + len(code), "kind": CANARY, "class": "direct"}
    return {**row, text: row[text] + before + code + after, spans: [*(row.get(spans) or []), span]}
