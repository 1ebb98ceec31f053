"""Invented people: the identifiers that the demo's notes carry.

Nothing here is about anyone: names come from `faker`, places are put together from syllables, telephone numbers lie in
the range reserved for fiction (555-01xx) and mail addresses in the domains reserved for examples.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from faker import Faker
from faker.providers.person.en_US import Provider as EnglishNames

from sani_dist.config import SensitivityClass

MAX_IDENTITIES = 200  # each takes three of about 630 surnames and three of 1200 places
_TOWNS = (
    "Alder Amber Ash Barrow Beck Birch Bramble Brook Caver Clay Copper Crane Dun Elder Fallow Fern Flint Garn Gorse "
    "Hazel Heron Holm Ivel Keld Lark Linden Marl Moss Nether Oaken Otter Pell Quarn Raven Rowan Sorrel Tarn Thistle "
    "Wren Yarrow"
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
_RECORD_FORMATS = ("??-######", "%#######")
_PHONE_FORMATS = ("(%##) 555-01##", "%##-555-01##")

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Identifier:
    """A value that points at a person, with the label it gets wherever a template names it."""

    value: str
    kind: str
    sensitivity: SensitivityClass


# What a template's `{field}` stands for: an identifier, or plain text.
Fields = dict[str, Identifier | str]


def identities(seed: int) -> Iterator[Fields]:
    """Yield one patient's fields after the other, always the same for a seed; no identifier comes twice.

    The identifiers of a patient are drawn independently of each other (no mail address made from the name, no surname
    shared with a relative): one that another gives away could be inferred, and would not show what a model remembers.
    """
    source = _Source(seed)
    while True:
        yield _identity(source)


def _identity(source: _Source) -> Fields:
    woman, relative_woman = source.choice((True, False)), source.choice((True, False))
    surname = source.surname()
    born = source.day(1931, 1962)
    admitted = source.day(2004, 2023)
    date_format = source.choice(_DATE_FORMATS)
    occupation = f"{source.choice(_TRADES.split(', '))} at the {source.place()} {source.choice(_EMPLOYERS.split())}"
    return {
        "patient": Identifier(f"{source.first_name(woman)} {surname}", "PERSON", "direct"),
        "surname": Identifier(surname, "PERSON", "direct"),
        "doctor": Identifier(
            f"{source.first_name(source.choice((True, False)))} {source.surname()}", "PERSON", "direct"
        ),
        "relative": Identifier(f"{source.first_name(relative_woman)} {source.surname()}", "PERSON", "direct"),
        "record": Identifier(source.code(*_RECORD_FORMATS), "RECORD_NUMBER", "direct"),
        "insurance": Identifier(source.code("???-####-####"), "INSURANCE_NUMBER", "direct"),
        "social_security": Identifier(source.code("9##-##-####"), "US_SSN", "direct"),
        "phone": Identifier(source.code(*_PHONE_FORMATS), "PHONE_NUMBER", "direct"),
        "email": Identifier(source.email(), "EMAIL_ADDRESS", "direct"),
        "street": Identifier(source.street(), "ADDRESS", "direct"),
        "city": Identifier(source.place(), "LOCATION", "indirect"),
        "birth": Identifier(born.strftime(date_format), "DATE_TIME", "indirect"),
        "admitted": Identifier(admitted.strftime(date_format), "DATE_TIME", "indirect"),
        "occupation": Identifier(occupation, "OCCUPATION", "indirect"),
        "age": str((admitted - born).days * 4 // 1461),
        "relation": source.choice(_RELATIONS[relative_woman]),
        "Title": "Ms." if woman else "Mr.",
        "They": "She" if woman else "He",
        "they": "she" if woman else "he",
        "Their": "Her" if woman else "His",
    }


class _Source:
    """Seeded draws of values, each given out once."""

    def __init__(self, seed: int) -> None:
        self._fake = Faker("en_US")
        self._fake.seed_instance(seed)
        self._random = random.Random(seed)
        # Short surnames are often words (Day, Hall, Long), which a detector would have to mask in ordinary sentences.
        self._surnames: list[str] = sorted({name for name in EnglishNames.last_names if len(name) > 5})
        self._given: set[Hashable] = set()

    def choice(self, options: tuple[T, ...] | list[T]) -> T:
        """Draw one of the options; these may come again."""
        return self._random.choice(options)

    def first_name(self, woman: bool) -> str:
        """Draw a first name; these may come again, since only with the surname do they name a person."""
        return str(self._fake.first_name_female() if woman else self._fake.first_name_male())

    def surname(self) -> str:
        return self._once(lambda: self.choice(self._surnames))

    def day(self, first_year: int, last_year: int) -> datetime.date:
        first, last = datetime.date(first_year, 1, 1), datetime.date(last_year, 12, 31)
        days = (last - first).days
        return self._once(lambda: first + datetime.timedelta(days=self._random.randint(0, days)))

    def place(self) -> str:
        return self._once(lambda: f"{self.choice(_TOWNS.split())}{self.choice(_ENDINGS.split())}")

    def street(self) -> str:
        return f"{self._random.randint(100, 999)} {self.place()} {self._fake.street_suffix()}"

    def email(self) -> str:
        def make() -> str:
            words = f"{self._fake.word()}.{self._fake.word()}".lower()
            return f"{words}{self._random.randint(10, 99)}@{self._fake.safe_domain_name()}"

        return self._once(make)

    def code(self, *formats: str) -> str:
        """Draw a number in one of the formats: # any digit, % a digit but 0, ? a capital letter."""
        return self._once(lambda: str(self._fake.bothify(self.choice(formats))).upper())

    def _once(self, make: Callable[[], T]) -> T:
        while (value := make()) in self._given:
            pass
        self._given.add(value)
        return value
