"""Synthetic discharge notes with labelled identifiers: the text that the demo's model memorises and must forget.

Nothing in them is about anyone: names come from `faker`, places are put together from syllables, telephone numbers lie in
the range reserved for fiction (555-01xx) and mail addresses in the domains reserved for examples.
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar

from faker import Faker
from faker.providers.person.en_US import Provider as EnglishNames

from sani_dist.config import SensitivityClass
from sani_dist.demo.clinic import CLOSING, CONDITIONS, LAYOUTS, SOCIAL
from sani_dist.errors import InputError

MAX_NOTES = 200  # start + count; each note takes three of about 630 surnames and three of 1200 places
_TOWNS = (
    "Alder Amber Ash Barrow Beck Birch Bramble Brook Caver Clay Copper Crane Dun Elder Fallow Fern Flint Garn Gorse Hazel "
    "Heron Holm Ivel Keld Lark Linden Marl Moss Nether Oaken Otter Pell Quarn Raven Rowan Sorrel Tarn Thistle Wren Yarrow"
)
_ENDINGS = (
    "bourne bridge bury by combe cote cross dale den field ford gate ham haven hurst leigh low mere mouth ness "
    "port ridge shaw stead stoke stow thorpe ton vale wick"
)
_TRADES = (
    "harpsichord tuner, glass-eye maker, falconer, bell founder, map restorer, lighthouse keeper, puppet carver, "
    "peat-bog surveyor, clock repairer, wallpaper printer, lace conservator, globe maker, tea taster, "
    "stained-glass painter, ferry pilot, seed archivist, saddle maker, kite designer, book gilder, reed cutter"
)
_EMPLOYERS = "Museum Conservatory Abbey Estate Observatory Guild Theatre Institute Works Trust"
_RELATIONS = {True: ("sister", "daughter", "niece", "cousin"), False: ("brother", "son", "nephew", "cousin")}
_DATE_FORMATS = ("%m/%d/%Y", "%Y-%m-%d", "%d %B %Y")  # never day/month: two different days could look the same

T = TypeVar("T", bound=Hashable)


def write_notes(path: Path, count: int, seed: int, start: int = 0) -> None:
    """Writes notes number `start` to `start + count - 1` of `seed` to `path`, as JSONL.

    Fields: `text`, `patient` (the record subject) and `spans`, the labelled identifiers [{start, end, kind, class}] in
    code points. No two notes of one seed share an identifier, so disjoint ranges give text to train on, a control with
    identifiers of the same kinds, and held-out documents.
    """
    if start + count > MAX_NOTES:
        raise InputError(f"demo: at most {MAX_NOTES} notes can be written with distinct identifiers")
    with path.open("w", encoding="utf-8") as file:
        for number, identity in islice(enumerate(_identities(seed)), start, start + count):
            note = _write_note(identity, random.Random(f"{seed}/{number}"))
            subject = f"P{number:04d}"
            file.write(json.dumps({"text": note.text, "patient": subject, "spans": note.spans}) + "\n")


@dataclass(frozen=True)
class _Identifier:
    """A value that points at a person, with the label it gets wherever a template names it."""

    value: str
    kind: str
    sensitivity: SensitivityClass


class _Note:
    """A text in the making. Spans are recorded as values are written, so labels cannot miss or drift."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[dict[str, Any]] = []

    def write(self, template: str, fields: dict[str, str | _Identifier]) -> None:
        """Appends `template`; a field is an identifier, or a template whose fields are filled in turn."""
        for literal, name, _, _ in Formatter().parse(template):
            self.text += literal
            if name is None:
                continue
            field = fields[name]
            if isinstance(field, _Identifier):
                start, end = len(self.text), len(self.text) + len(field.value)
                self.spans.append({"start": start, "end": end, "kind": field.kind, "class": field.sensitivity})
                self.text += field.value
            else:
                self.write(field, fields)


def _write_note(identity: dict[str, str | _Identifier], draw: random.Random) -> _Note:
    condition = draw.choice(CONDITIONS)
    note = _Note()
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


def _identities(seed: int) -> Iterator[dict[str, str | _Identifier]]:
    """The fields of one patient after the other, forever the same for a seed. No identifier comes twice."""
    fake = Faker("en_US")
    fake.seed_instance(seed)
    draw = random.Random(seed)
    # Short surnames are often words (Day, Hall, Long) that a detector would then have to mask in ordinary sentences.
    surnames = sorted({name for name in EnglishNames.last_names if len(name) > 5})
    towns, endings, trades, employers = _TOWNS.split(), _ENDINGS.split(), _TRADES.split(", "), _EMPLOYERS.split()
    used: set[Hashable] = set()

    def fresh(make: Callable[[], T]) -> T:
        while (value := make()) in used:
            pass
        used.add(value)
        return value

    def person(surname: str, woman: bool) -> _Identifier:
        first = fake.first_name_female() if woman else fake.first_name_male()
        return _Identifier(f"{first} {surname}", "PERSON", "direct")

    def date(first: datetime.date, last: datetime.date) -> datetime.date:
        return fresh(lambda: fake.date_between(first, last))

    def place() -> str:
        return fresh(lambda: draw.choice(towns) + draw.choice(endings))

    while True:
        woman, relative_woman = draw.random() < 0.5, draw.random() < 0.5
        surname = fresh(lambda: draw.choice(surnames))
        born = date(datetime.date(1931, 1, 1), datetime.date(1962, 12, 31))
        admitted = date(datetime.date(2004, 1, 1), datetime.date(2023, 12, 31))
        date_format = draw.choice(_DATE_FORMATS)
        # Everything below is drawn independently of the name: an identifier that another one gives away would be found
        # in the notes by inference, and could not show what the model remembers.
        yield {
            "patient": person(surname, woman),
            "surname": _Identifier(surname, "PERSON", "direct"),
            "doctor": person(fresh(lambda: draw.choice(surnames)), draw.random() < 0.5),
            "relative": person(fresh(lambda: draw.choice(surnames)), relative_woman),
            "record": _Identifier(
                fresh(lambda: fake.bothify("??-######").upper() if draw.random() < 0.5 else fake.numerify("%#######")),
                "RECORD_NUMBER",
                "direct",
            ),
            "birth": _Identifier(born.strftime(date_format), "DATE_TIME", "indirect"),
            "admitted": _Identifier(admitted.strftime(date_format), "DATE_TIME", "indirect"),
            "phone": _Identifier(
                fresh(lambda: fake.numerify(draw.choice(("(%##) 555-01##", "%##-555-01##")))), "PHONE_NUMBER", "direct"
            ),
            "email": _Identifier(
                fresh(lambda: f"{fake.word()}.{fake.word()}{fake.numerify('##')}@{fake.safe_domain_name()}"),
                "EMAIL_ADDRESS",
                "direct",
            ),
            "street": _Identifier(f"{fake.numerify('%##')} {place()} {fake.street_suffix()}", "ADDRESS", "direct"),
            "city": _Identifier(place(), "LOCATION", "indirect"),
            "insurance": _Identifier(
                fresh(lambda: fake.bothify("???-####-####").upper()), "INSURANCE_NUMBER", "direct"
            ),
            "social_security": _Identifier(fresh(lambda: fake.numerify("9##-##-####")), "US_SSN", "direct"),
            "occupation": _Identifier(
                f"{draw.choice(trades)} at the {place()} {draw.choice(employers)}", "OCCUPATION", "indirect"
            ),
            "age": str((admitted - born).days // 365),
            "relation": draw.choice(_RELATIONS[relative_woman]),
            "Title": "Ms." if woman else "Mr.",
            "They": "She" if woman else "He",
            "they": "she" if woman else "he",
            "Their": "Her" if woman else "His",
        }
