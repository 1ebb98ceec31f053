"""Synthetic discharge notes with labelled identifiers: the text that the demo's model memorises and must forget."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

from examples.clinic.clinic import CLOSING, CONDITIONS, LAYOUTS, SOCIAL
from examples.clinic.identities import MAX_IDENTITIES, Fields, Identifier, identities
from sani_dist.errors import InputError


def write_notes(path: Path, count: int, seed: int, start: int = 0) -> None:
    """Write notes number `start` to `start + count - 1` of `seed` to `path`, as JSONL.

    Fields: `text`, `patient` (the record subject) and `spans`, the labelled identifiers [{start, end, kind, class}] in
    code points. No two notes of one seed share an identifier, so disjoint ranges give text to train on, a control with
    identifiers of the same kinds, and held-out documents.
    """
    if start + count > MAX_IDENTITIES:
        raise InputError(f"demo: at most {MAX_IDENTITIES} notes can be written without repeating an identifier")
    with path.open("w", encoding="utf-8") as file:
        for number, identity in islice(enumerate(identities(seed)), start, start + count):
            note = _write_note(identity, random.Random(f"{seed}/{number}"))
            file.write(json.dumps({"text": note.text, "patient": f"P{number:04d}", "spans": note.spans}) + "\n")


class Note:
    """A text in the making. Spans are recorded as values are written, so labels cannot miss or drift."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[dict[str, Any]] = []

    def write(self, template: str, fields: Fields) -> None:
        """Append `template`; a field is an identifier, or a template whose fields are filled in turn."""
        for literal, name, _, _ in Formatter().parse(template):
            self.text += literal
            if name is None:
                continue
            field = fields[name]
            if isinstance(field, Identifier):
                start, end = len(self.text), len(self.text) + len(field.value)
                self.spans.append({"start": start, "end": end, "kind": field.kind, "class": field.sensitivity})
                self.text += field.value
            else:
                self.write(field, fields)


def _write_note(identity: Fields, draw: random.Random) -> Note:
    condition = draw.choice(CONDITIONS)
    note = Note()
    note.write(
        draw.choice(LAYOUTS),
        {
            **identity,
            "complaint": draw.choice(condition.complaint),
            "history": draw.choice(condition.history),
            "findings": draw.choice(condition.findings),
            "treatment": draw.choice(condition.treatment),
            "follow_up": draw.choice(condition.follow_up),
            "social": draw.choice(SOCIAL),
            "closing": draw.choice(CLOSING),
            "days": str(draw.randint(2, 4)),
            "saturation": str(draw.randint(86, 93)),
            "temperature": f"{draw.uniform(37.8, 39.6):.1f}",
            "pulse": str(draw.randint(74, 128)),
            "pressure": f"{draw.randint(98, 168)}/{draw.randint(58, 96)}",
            "white_cells": f"{draw.uniform(10.5, 17.5):.1f}",
            "protein": str(draw.randint(40, 240)),
        },
    )
    return note
