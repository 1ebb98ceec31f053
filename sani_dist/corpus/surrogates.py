"""Fresh identities in place of the true ones: the text that repair learns instead, another for each epoch.

A value becomes one of its kind and format: a date another date, a number another number with its punctuation, a name another name.
Within a document equal values, and the words that names share, become equal again. What no generator can make stays, and stays sensitive.
No surrogate is a value of the corpus: the true ones must not be learnt again, and those of the control must not be learnt at all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence

from faker import Faker

from sani_dist.corpus.fold import value_key
from sani_dist.corpus.formats import alternatives, is_structured
from sani_dist.corpus.span import Document, Span

# Of names and addresses where the settings name no locale.
DEFAULT_LOCALE = "en_US"
# A value that so many draws do not replace has no generator worth the name.
DRAWS = 20

_MAKERS: dict[str, Callable[[Faker], str]] = {
    "EMAIL_ADDRESS": lambda fake: str(fake.ascii_safe_email()),
    "URL": lambda fake: str(fake.url()),
    "LOCATION": lambda fake: str(fake.city()),
    "ADDRESS": lambda fake: str(fake.street_address()),
    "ORGANIZATION": lambda fake: str(fake.company()),
    "OCCUPATION": lambda fake: str(fake.job()).lower(),
}


class Surrogates:
    """Replaces the identifiers of documents, the same way for the same seed and epoch."""

    def __init__(self, locale: str, seed: int, is_taken: Callable[[str], bool]) -> None:
        """`locale`: of faker, such as en_US. `is_taken(value)`: whether the corpus has that value."""
        self._fake = Faker(locale)
        self._seed, self._is_taken = seed, is_taken

    def replace(
        self, document: Document, spans: Sequence[Span], epoch: int, counts: Counter[tuple[str, str]]
    ) -> tuple[Document, list[Span]]:
        """The document with surrogates, and the spans that stayed, where they lie in it. `spans`: disjoint and in order.

        `counts` is added to, by kind: ("replaced", kind), and ("kept", kind) for what nothing could be made for.
        """
        text, done = "", 0
        stayed = []
        for span, surrogate in zip(spans, self.of(document, spans, epoch), strict=True):
            text += document.text[done : span.start]
            if surrogate is None:
                stayed.append(
                    Span(len(text), len(text) + span.end - span.start, span.kind, span.sensitivity, span.detector)
                )
            counts["kept" if surrogate is None else "replaced", span.kind] += 1
            text += document.text[span.start : span.end] if surrogate is None else surrogate
            done = span.end
        return Document(document.id, document.subject, text + document.text[done:], document.split), stayed

    def of(self, document: Document, spans: Sequence[Span], epoch: int) -> list[str | None]:
        """The surrogate of each span, None where there is none."""
        found = [(span.kind, document.text[span.start : span.end]) for span in spans]
        made = self._of_document(set(found), document.id, epoch)
        return [made[value] for value in found]

    def _of_document(
        self, values: Collection[tuple[str, str]], document: int, epoch: int
    ) -> dict[tuple[str, str], str | None]:
        """Surrogate of each (kind, value), None where there is none."""
        draw = random.Random(f"{self._seed} {epoch} {document}")
        self._fake.seed_instance(draw.getrandbits(64))
        words = _Words(self._fake, draw)
        made: dict[tuple[str, str], str | None] = {}
        by_key: dict[tuple[str, str], str] = {}  # the same value in another case or spacing
        # Whole names first: they tell which of their words is the surname.
        for kind, value in sorted(values, key=lambda v: (-len(v[1].split()), v)):
            key = (kind, value_key(value))
            if key not in by_key:
                found = next((s for s in self._draws(kind, value, words, draw) if not self._is_taken(s)), None)
                if found is None:
                    made[kind, value] = None
                    continue
                by_key[key] = found
            made[kind, value] = by_key[key].upper() if value.isupper() and kind in ("PERSON", *_MAKERS) else by_key[key]
        return made

    def _draws(self, kind: str, value: str, words: _Words, draw: random.Random) -> Iterator[str]:
        """A few values of the kind and format of `value`; none where nobody knows how."""
        if kind == "PERSON":
            for _ in range(DRAWS):
                yield words.name(value)
                words.forget(value)
        elif kind in _MAKERS:
            yield from (_MAKERS[kind](self._fake) for _ in range(DRAWS))
        elif kind == "IP_ADDRESS":
            yield from (str(self._fake.ipv6() if ":" in value else self._fake.ipv4()) for _ in range(DRAWS))
        elif is_structured(kind, value):
            yield from alternatives(kind, value, DRAWS, draw)


class _Words:
    """The words of names in one document. A word keeps its surrogate, so that a surname alone is still that of the full name."""

    def __init__(self, fake: Faker, draw: random.Random) -> None:
        self._fake, self._draw = fake, draw
        self._of: dict[str, str] = {}
        self._new: list[str] = []

    def name(self, value: str) -> str:
        words = value.split()
        self._new = [word for word in map(value_key, words) if word not in self._of]
        return " ".join(self._word(word, last=i == len(words) - 1) for i, word in enumerate(words))

    def forget(self, value: str) -> None:
        """What the last name drawn for `value` brought in: the next draw takes other words."""
        for word in self._new:
            self._of.pop(word, None)

    def _word(self, word: str, last: bool) -> str:
        key = value_key(word)
        if key not in self._of:
            if len(word.rstrip(".")) == 1:  # an initial
                self._of[key] = self._draw.choice("ABCDEFGHJKLMNOPRSTVW") + word[1:]
            else:
                self._of[key] = str(self._fake.last_name() if last else self._fake.first_name())
        return self._of[key]
