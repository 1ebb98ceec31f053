"""What has the form of an identifier."""

from __future__ import annotations

import pytest

from sani_dist.audit.forms import begins_with_form, form, forms


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("QX-1043", ("AA", "-", "9999")),
        ("Ida  Holm", ("Aa", " ", "Aa")),
        ("HOLM", ("AAAA",)),
        ("(617) 555-0100", ("(", "999", ")", " ", "999", "-", "9999")),
        ("a.b@c.org", ("a", ".", "a", "@", "a", ".", "a")),
        ("Zoë O'Hara", ("Aa", " ", "A", "'", "Aa")),
    ],
)
def test_form_of_a_value(value: str, expected: tuple[str, ...]) -> None:
    assert form(value) == expected


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        (" QX-9999, aged 40", True),
        ("QX-999", False),
        ("QX-99999", False),
        ("QXZ-9999", False),
        (" Otto Berg was", True),
        ("Otto", False),
        ("otto berg", False),
        ("\n\nOtto Berg", False),  # a hole: the model writes line breaks where a name is wanted
        ("", False),
    ],
)
def test_a_text_begins_with_a_form_of_the_corpus(text: str, begins: bool) -> None:
    assert begins_with_form(text, forms(["AB-1234", "Ida Holm", " "])) is begins


def test_without_forms_nothing_begins_with_one() -> None:
    assert not begins_with_form("Otto Berg", forms([]))
