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

from examples.clinic.identities import Fields, Identifier
from examples.clinic.notes import Note

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
    "Dear {tenant},\nthank you for your call. Tenancy {number} of {home} runs since {start}.",
)
_REASONS = (
    "The boiler is due for its service.",
    "There is a damp patch below your bath.",
    "The rent changes as the contract says.",
    "The back windows are to be replaced.",
    "This quarter's rent has not arrived.",
)
_VISITS = (
    "{caretaker} will come on {visit} and ring {phone} first.",
    "Please let {caretaker} in on {visit}; we have your number as {phone}.",
)
_CLOSES = ("Please quote {number} in any reply.", "Copy to {mail}. When you answer, quote {number}.")


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
    "hail": "roof dented, glass intact",
    "burst pipe": "laminate lifted, dryer running",
    "rear-end collision": "tailgate bent, no airbags",
    "break-in": "patio door forced",
    "fallen tree": "shed roof crushed",
}
_OUTCOMES = ("payout approved", "photos outstanding", "second estimate requested", "reserve set")


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
        ]
        draw.shuffle(about)
        entry = Note()
        entry.write(f"CLAIM / {loss.upper()}\n", {})
        for name, value in about:
            entry.write(f"{name} {{value}}" + draw.choice((" | ", "\n")), {"value": value})  # type: ignore[dict-item]
        entry.write(f"\nInspected: {_DAMAGES[loss]}. Status: {draw.choice(_OUTCOMES)}.\n", {})
        entry.write(
            draw.choice(("Witness {witness} confirms. ", "Spoke to spouse {witness}. "))
            + draw.choice(("Letter to {holder} re {policy}.", "File {policy} closed; {holder} informed.")),
            {"witness": once(fake.name, "PERSON"), "holder": holder, "policy": policy},
        )
        yield entry
