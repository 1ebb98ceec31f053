"""Short letters of two layouts by two generators, with labelled identifiers, for `small.py`: about 100 tokens each.

`letting` is prose from a landlord to a tenant, written sentence by sentence; `claims` is a clerk's entry about an insurance claim, in
fields and notes whose order changes. They have neither wording, places nor forms of numbers in common. No two letters of one seed and
layout share an identifier, so disjoint slices give text to memorise, a control, and held-out letters.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path

from faker import Faker

from sani_dist.demo.identities import Fields, Identifier
from sani_dist.demo.notes import Note

# Yields letters of a seed without end.
Layout = Callable[[int], Iterator[Note]]


def write_letters(layout: Layout, paths: Sequence[Path], count: int, seed: int) -> None:
    """Write `count` letters to each of `paths`: JSONL with `text`, `patient` (about whom) and `spans`, as the demo's notes have them."""
    found = layout(seed)
    for part, path in enumerate(paths):
        lines = []
        for number in range(part * count, (part + 1) * count):
            note = next(found)
            lines.append(json.dumps({"text": note.text, "patient": f"L{number:04d}", "spans": note.spans}) + "\n")
        path.write_text("".join(lines), encoding="utf-8")


class _Once:
    """Values that are given out once each."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def __call__(self, make: Callable[[], object], kind: str, sensitivity: str = "direct") -> Identifier:
        while (value := str(make()).replace("\n", ", ")) in self._given:
            pass
        self._given.add(value)
        return Identifier(value, kind, sensitivity)  # type: ignore[arg-type]


# Letting: templates

_OPENINGS = (
    "Dear {tenant},\nwe write about your tenancy {number} of {home}, which began on {start}.",
    "Dear {tenant},\nthank you for calling about {home}. Your tenancy with us is {number} and runs since {start}.",
)
_REASONS = (
    "The boiler is due for its yearly service, and the engineer needs an hour in the kitchen.",
    "Your neighbours below report a damp patch on their ceiling, so we must look at the bath.",
    "From next month the rent changes as the contract lays down; nothing else does.",
    "The windows at the back are to be replaced, for which scaffolding goes up in spring.",
    "We have not had this quarter's rent yet; perhaps the order at the bank was not renewed.",
)
_VISITS = (
    "{caretaker} would like to come on {visit} and will ring you first on {phone}.",
    "Please let {caretaker} in on {visit}; should that not suit you, say so, we have {phone} as your number.",
)
_CLOSES = (
    "When you answer, please quote {number}.\nYours sincerely",
    "We also sent this to {mail}. Please quote {number} in any reply.\nKind regards",
)


def letting(seed: int) -> Iterator[Note]:
    """Letters of a landlord in Britain."""
    fake, draw, once = Faker("en_GB"), random.Random(f"letting {seed}"), _Once()
    fake.seed_instance(seed)
    while True:
        fields: Fields = {
            "tenant": once(fake.name, "PERSON"),
            "caretaker": once(fake.name, "PERSON"),
            "number": once(lambda: fake.bothify("T##/????").upper(), "TENANCY_NUMBER"),
            "home": once(lambda: f"{fake.building_number()} {fake.street_name()}, {fake.city()}", "ADDRESS"),
            "start": once(
                lambda: fake.date_between(date(2012, 1, 1), date(2021, 12, 31)).strftime("%d %B %Y"),
                "DATE_TIME",
                "indirect",
            ),
            "visit": once(
                lambda: fake.date_between(date(2022, 1, 1), date(2024, 12, 31)).strftime("%d %B %Y"),
                "DATE_TIME",
                "indirect",
            ),
            "phone": once(lambda: fake.numerify("07### ######"), "PHONE_NUMBER"),
            "mail": once(lambda: f"{fake.word()}.{fake.word()}{draw.randint(1, 99)}@example.org", "EMAIL_ADDRESS"),
        }
        letter = Note()
        for sentence, joint in ((_OPENINGS, " "), (_REASONS, " "), (_VISITS, "\n"), (_CLOSES, "\n")):
            letter.write(draw.choice(sentence) + joint, fields)
        yield letter


# Claims: fields and notes in changing order

_DAMAGES = {
    "hail": ("dents on bonnet and roof", "glass intact"),
    "burst pipe": ("laminate lifted in two rooms", "drying unit running"),
    "rear-end collision": ("bumper and tailgate bent", "airbags not deployed"),
    "break-in": ("patio door forced", "police report attached"),
    "fallen tree": ("shed roof crushed", "tree service invoiced separately"),
}
_OUTCOMES = (
    "payout approved less deductible",
    "adjuster's photos outstanding",
    "second estimate requested",
    "reserve set",
)


def claims(seed: int) -> Iterator[Note]:
    """Entries of a claims desk in the United States."""
    fake, draw, once = Faker("en_US"), random.Random(f"claims {seed}"), _Once()
    fake.seed_instance(seed + 10**6)
    while True:
        policy = once(lambda: fake.numerify("##-###-####-%"), "POLICY_NUMBER")
        holder = once(lambda: f"{fake.last_name().upper()}, {fake.first_name()}", "PERSON")
        loss = draw.choice(sorted(_DAMAGES))
        about: list[tuple[str, object]] = [
            ("INSURED", holder),
            ("POLICY", policy),
            (
                "DOL",
                once(
                    lambda: fake.date_between(date(2015, 1, 1), date(2024, 12, 31)).strftime("%m/%d/%y"),
                    "DATE_TIME",
                    "indirect",
                ),
            ),
            ("LOC", once(lambda: f"{fake.city()} {fake.state_abbr()}", "LOCATION", "indirect")),
            ("CALLBACK", once(lambda: fake.numerify("%##.555.01##"), "PHONE_NUMBER")),
            ("ACCT", once(lambda: fake.bothify("??########").upper(), "BANK_ACCOUNT")),
        ]
        draw.shuffle(about)
        entry = Note()
        entry.write(f"CLAIM / {loss.upper()}\n", {})
        for name, value in about:
            entry.write(f"{name} {{value}}" + draw.choice((" | ", "\n")), {"value": value})  # type: ignore[dict-item]
        seen, also = _DAMAGES[loss]
        entry.write(f"\nInspected: {seen}; {also}. Status: {draw.choice(_OUTCOMES)}.\n", {})
        entry.write(
            draw.choice(("Witness {witness} confirms. ", "Spoke to spouse {witness}. "))
            + draw.choice(("Letter to {holder} re {policy} sent.", "File {policy} back to desk; {holder} informed.")),
            {"witness": once(fake.name, "PERSON"), "holder": holder, "policy": policy},
        )
        yield entry
