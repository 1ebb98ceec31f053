"""Values as people write them: what docs/detection.md says is equated, and what is not."""

# ruff: noqa: RUF001 (letters that look like others are what this is about)

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sani_dist.corpus.closure import Blacklist, values_of
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.terms import term_detector


def document(text: str) -> Document:
    return Document(0, None, text, "repair")


def by_terms(value: str, text: str) -> list[str]:
    (spans,) = term_detector([value], "A", "direct", "x")([document(text)])
    return [text[span.start : span.end] for span in spans]


def by_closure(value: str, text: str) -> list[str]:
    blacklist = Blacklist()
    blacklist.add(values_of([(document(value), Span(0, len(value), "A", "direct", "x"))]))
    return [text[span.start : span.end] for span in blacklist.occurrences(document(text))]


# Value, text, and what of the text is the value.
SAME = {
    "typographic apostrophe": ("O'Brannigan", "Nurse O’Brannigan came", "O’Brannigan"),
    "no apostrophe": ("O'Brannigan", "mail OBRANNIGAN now", "OBRANNIGAN"),
    "possessive": ("Vollbrecht", "Vollbrecht’s chart", "Vollbrecht"),
    "elision": ("Arletty", "le dossier d’Arletty", "Arletty"),
    "non-breaking hyphen": ("Smith-Okoro", "Ada Smith\u2011Okoro came", "Smith\u2011Okoro"),
    "dash": ("Smith-Okoro", "Ada Smith\u2013Okoro came", "Smith\u2013Okoro"),
    "space for hyphen": ("Smith-Okoro", "Ada Smith Okoro came", "Smith Okoro"),
    "soft hyphen": ("Vollbrecht", "the Voll\u00adbrecht case", "Voll\u00adbrecht"),
    "zero width": ("Vollbrecht", "the Voll\u200bbrecht case", "Voll\u200bbrecht"),
    "direction mark": ("Ignatz Vollbrecht", "Ignatz\u200f Vollbrecht came", "Ignatz\u200f Vollbrecht"),
    "control character": ("Vollbrecht", "seen\x02Vollbrecht\x03", "Vollbrecht"),
    "white space": ("Ignatz Vollbrecht", "Ignatz \u00a0\n Vollbrecht", "Ignatz \u00a0\n Vollbrecht"),
    "broken at the end of a line": ("Vollbrecht", "the Voll-\nbrecht case", "Voll-\nbrecht"),
    "broken in capitals": ("Vollbrecht", "the VOLL-\r\n  BRECHT case", "VOLL-\r\n  BRECHT"),
    "hyphen at the end of a line": ("Smith-Okoro", "Ada Smith-\nOkoro", "Smith-\nOkoro"),
    "superscript": ("Ann", "asked Ann² about it", "Ann"),
    "trademark": ("Zyxwort", "take Zyxwort™ daily", "Zyxwort"),
    "registered": ("Zyxwort", "take Zyxwort® daily", "Zyxwort"),
    "line break as it is escaped": ("Vollbrecht", r"Name:\nVollbrecht\nDOB", "Vollbrecht"),
    "tab as it is escaped": ("Ann", r"Name:\tAnn\tDOB", "Ann"),
    "escaped twice": ("Ann", r"Name:\\nAnn", "Ann"),
    "escaped within": ("Ignatz Vollbrecht", r"Ignatz\nVollbrecht", r"Ignatz\nVollbrecht"),
    "code point": ("José Vollbrecht", r"Jos\u00e9 Vollbrecht", r"Jos\u00e9 Vollbrecht"),
    "in an address": ("Ignatz Vollbrecht", "https://x.example/?q=Ignatz%20Vollbrecht&p=1", "Ignatz%20Vollbrecht"),
    "accent in an address": ("José Vollbrecht", "q=Jos%C3%A9+Vollbrecht", "Jos%C3%A9+Vollbrecht"),
    "entity": ("Ignatz Vollbrecht", "Ignatz&nbsp;Vollbrecht was", "Ignatz&nbsp;Vollbrecht"),
    "entity before": ("Ann", "&#13;Ann &quot;fine&quot;", "Ann"),
    "entity within": ("O'Brannigan", "Mrs O&#39;Brannigan", "O&#39;Brannigan"),
    "entity of an entity": ("Ignatz Vollbrecht", "Ignatz&amp;nbsp;Vollbrecht", "Ignatz&amp;nbsp;Vollbrecht"),
    "path": ("notes", r"see C:\temp\notes", "notes"),
    "camel case": ("Ignatz Vollbrecht", "file IgnatzVollbrecht.pdf", "IgnatzVollbrecht"),
    "within camel case": ("Vollbrecht", "file patientVollbrecht.pdf", "Vollbrecht"),
    "capitals before a name": ("Vollbrecht", "the MRNVollbrecht", "Vollbrecht"),
    "value in camel case": ("IgnatzVollbrecht", "then Ignatz Vollbrecht came", "Ignatz Vollbrecht"),
    "underscore": ("Ignatz Vollbrecht", "ignatz_vollbrecht_2.pdf", "ignatz_vollbrecht"),
    "capitals of a name in camel case": ("McDonald", "MCDONALD came", "MCDONALD"),
    "number behind letters": ("00412345", "MRN00412345 seen", "00412345"),
    "number before letters": ("00412345", "file 00412345A", "00412345"),
    "name before a number": ("Vollbrecht", "vollbrecht84@x.org", "vollbrecht"),
    "spaces in a number": ("9434765919", "NHS 943 476 5919.", "943 476 5919"),
    "no spaces in a number": ("943 476 5919", "NHS9434765919", "9434765919"),
    "hyphens in a number": ("943 476 5919", "943-476-5919", "943-476-5919"),
    "letters of a number": ("QX-77314", "record QX 77314, again", "QX 77314"),
    "digits of another script": ("412", "\u0664\u0661\u0662 kg", "\u0664\u0661\u0662"),
    "wide digits": ("00412345", "\uff10\uff10\uff14\uff11\uff12\uff13\uff14\uff15!", "\uff10\uff10\uff14\uff11\uff12\uff13\uff14\uff15"),
    "initials without space": ("J. R. Vollbrecht", "seen by J.R. Vollbrecht", "J.R. Vollbrecht"),
    "initials without stops": ("J.R. Vollbrecht", "seen by J R Vollbrecht", "J R Vollbrecht"),
    "case": ("strasse", "die STRASSE und Straße", "STRASSE"),
    "Turkish capitals": ("İsmail Yıldız", "HASTA: İSMAİL YILDIZ", "İSMAİL YILDIZ"),
    "Turkish small letters": ("Işık Kılınç", "hasta ışık kılınç geldi", "ışık kılınç"),
    "Turkish by an English program": ("Işık Kılınç", "hasta işik kilinc geldi", "işik kilinc"),
    "accents": ("Zoë Núñez", "Zoe Nunez came", "Zoe Nunez"),
    "decomposed": ("Núñez", "Nu\u0301n\u0303ez", "Nu\u0301n\u0303ez"),
    "Polish": ("Wałęsa", "Pan Walesa", "Walesa"),
    "Greek accents": ("Παπαδόπουλος", "ΠΑΠΑΔΟΠΟΥΛΟΣ", "ΠΑΠΑΔΟΠΟΥΛΟΣ"),
    "Russian": ("Фёдоров", "ФЕДОРОВ пришёл", "ФЕДОРОВ"),
    "Hindi": ("प्रियंका", "रोगी प्रियंका, घर", "प्रियंका"),
    "Tamil": ("கிருஷ்ணமூர்த்தி", "நோயாளி கிருஷ்ணமூர்த்தி வந்தார்", "கிருஷ்ணமூர்த்தி"),
    "vocalised Arabic": ("محمد", "المريض مُحَمَّدٌ هنا", "مُحَمَّدٌ"),
    "Arabic article and prefixes": ("أحمد", "رسالة ولأحمد", "أحمد"),
    "Hebrew prefix": ("ירושלמי", "מכתב לירושלמי", "ירושלמי"),
    "Korean particle": ("김철수", "김철수는 왔다", "김철수"),
    "Korean title and particle": ("김철수", "김철수씨가 왔다", "김철수"),
    "Korean space": ("김철수", "환자 김 철수", "김 철수"),
    "Chinese": ("王小明", "患者王小明来院", "王小明"),
    "Japanese": ("マリア・ロドリゲス", "患者マリアロドリゲス様", "マリアロドリゲス"),
    "Thai": ("สมชาย", "ผู้ป่วยสมชายมา", "สมชาย"),
}  # fmt: skip

OTHER = {
    "part of a word": ("Ann", "Anna, Joanne and Hann"),
    "no apostrophe": ("O'Brannigan", "Brannigan came"),
    "space within a word": ("Vollbrecht", "Voll brecht"),
    "no space between words": ("The Rapist", "the therapist"),
    "comma for a space": ("Ignatz Vollbrecht", "Ignatz, Vollbrecht"),
    "end of a sentence": ("Ignatz Vollbrecht", "He saw Ignatz. Vollbrecht left"),
    "hyphen at the end of a line": ("Vollbrecht", "Voll-\n\nbrecht"),
    "broken where none is": ("May be", "Maybe"),
    "escape": ("Vollbrecht", r"\Vollbrechts"),
    "not an escape": ("Ann", r"C:\nAnna"),
    "camel case of short values": ("Ann", "JoAnn"),
    "Mc": ("Donald", "Ronald McDonald and MacDonald"),
    "part of a number": ("00412345", "1200412345 004123456"),
    "short number behind a letter": ("12", "vitamin B12"),
    "decimal point": ("125", "12.5 mg, 1.25"),
    "slash": ("12031984", "12/03/1984"),
    "short number with a space": ("71", "7 1, 7-1"),
    "short number without": ("7-1", "71"),
    "minus": ("12345", "123 456"),
    "initials": ("J.R. Vollbrecht", "JR Vollbrecht"),
    "full stop": ("St Vollbrecht", "St. Vollbrecht"),
    "umlaut as two letters": ("Müller", "Mueller"),
    "Cyrillic short i": ("Йорк", "Иорк"),
    "Japanese voiced": ("かき", "がき"),
    "Hindi vowel": ("राम", "रमा"),
    "Arabic letters": ("سالم", "وسليم"),
    "Korean name": ("김철", "김철수는"),
    "Korean without its particle": ("김철수는", "김철수"),
    "German genitive": ("Vollbrecht", "Vollbrechts Akte"),
    "Latin in Cyrillic": ("Anna", "\u0410nna"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("find", [by_terms, by_closure])
def test_is_the_same_value(find, name):
    value, text, expected = SAME[name]
    assert expected in find(value, text)


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("find", [by_terms, by_closure])
def test_is_another_value(find, name):
    assert find(*OTHER[name]) == []


NAME = st.sampled_from(
    ["Ignatz Vollbrecht", "Zoë O'Brannigan-Núñez", "J. R. Quackenbush", "İsmail Yıldız", "Фёдор Достоевский"]
)
NUMBER = st.sampled_from(["00412345", "943 476 5919", "QX-77314", "(020) 7946-0018", "1984-03-12"])
WRITTEN = {
    "case": lambda value: value.upper(),
    "typographic": lambda value: value.replace("'", "\u2019").replace("-", "\u2010").replace(" ", "\u00a0"),
    "hidden": lambda value: value[:2] + "\u200d\u00ad" + value[2:],
    "spaces": lambda value: value.replace(" ", "  \n"),
    "underscores": lambda value: value.replace(" ", "_"),
    "entities": lambda value: value.replace(" ", "&nbsp;").replace("'", "&#39;"),
    "url": lambda value: quote(value),
    "escapes": lambda value: value.replace(" ", r"\n"),
}
AROUND = st.sampled_from(["", "seen ", "(", "\x02", "the record:", "\n", r"\n", "%20", "&#13;", "\u200f"])


@given(NAME | NUMBER, st.sampled_from(sorted(WRITTEN)), AROUND, AROUND)
def test_a_value_is_found_however_it_is_written(value, way, before, after):
    written = WRITTEN[way](value)
    for find in (by_terms, by_closure):
        found = find(value, f"{before}{written} {after}")
        assert any(letters(one) == letters(written) for one in found), (way, written, found)


@given(
    st.sampled_from(["00412345", "943 476 5919", "1984-03-12"]),
    st.sampled_from(["MRN", "p", "No"]),
    st.sampled_from(["A", "x.pdf", ""]),
)
def test_a_number_is_found_glued_to_letters(value, before, after):
    digits = letters(value)
    for find in (by_terms, by_closure):
        assert digits in find(value, before + digits + after)


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))
