"""Folding, terms, rare terms, merging and closure."""

from __future__ import annotations

import tracemalloc
import unicodedata
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sani_dist.config import RareTermsDetector, TermsDetector
from sani_dist.corpus.closure import Blacklist, merge, values_of
from sani_dist.corpus.fold import HARD, fold, text_of_key, value_key, value_keys, views
from sani_dist.corpus.rare_terms import RareTerms
from sani_dist.corpus.span import PROTECTION, Document, Span, value_id
from sani_dist.corpus.terms import TermMatcher, term_detector, terms
from sani_dist.errors import InputError

TEXT = st.text(
    st.sampled_from("abAB17\\'\u2019\u00ad\u200d \n\t.-_éßﬁİ½e\u0301\u0345가\u1100\u1161\u11a8漢😀\u00a0Ⅷ"), max_size=30
)


def document(text: str, subject: str | None = None) -> Document:
    return Document(0, subject, text, "repair")


@given(st.text(max_size=30) | TEXT)
def test_every_folded_character_leads_back_to_the_text(text):
    for view in views(text):
        size = len(view.text)
        assert size == len(view.starts) == len(view.ends) == len(view.gaps) == len(view.border) - 1
        assert all(0 <= start <= end <= len(text) for start, end in zip(view.starts, view.ends, strict=True))
        assert list(view.starts) == sorted(view.starts)
        assert view.border[0] == view.border[-1] == HARD


@given(st.text(st.sampled_from("abABI17 -'.éßﬁİ½가漢Ⅷ\u0391")))
def test_normal_forms_and_cases_are_one(text):
    folded = fold(text).text
    for form in ("NFC", "NFD", "NFKC"):
        assert fold(unicodedata.normalize(form, text)).text == folded
    assert fold(text.casefold()).text == folded


@given(st.text(st.sampled_from("aBj7. -_'\n\x07\u00a0,\t(")))
def test_a_key_is_the_folded_text_with_the_separators_of_short_values(value):
    assert value_key(value) == fold(value).key
    assert fold(value).key in (*value_keys(value), "")


@given(TEXT, st.lists(TEXT, max_size=5))
def test_terms_are_those_of_brute_force(text, values):
    keys = {value_key(value) for value in values} - {""}
    folded = fold(text)
    expected = set()
    for key in keys:
        for start in range(len(folded.text)):
            end = start + len(text_of_key(key))
            same = folded.text[start:end] + folded.gaps_of(start, end) == key
            if same and folded.stands_alone(start, end):
                expected.add((*folded.origin(start, end), key))
    assert set(TermMatcher((key, key) for key in keys).find(folded)) == expected


@given(TEXT, TEXT, TEXT)
def test_a_value_is_found_where_it_stands_as_it_is(before, value, after):
    text = f"{before} {value} {after}"
    (spans,) = term_detector([value], "A", "direct", "x")([document(text)])
    covered = {i for s in spans for i in range(s.start, s.end)}
    start = len(before) + 1
    for i, character in enumerate(value, start):
        assert i in covered or not character.isalnum(), (text, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see JOHN  \n smith.", ["JOHN  \n smith"]),
        ("john_smith john smithson", ["john_smith"]),
        ("(John Smith)", ["John Smith"]),
        ("the groß STRASSE Straße straßen", ["STRASSE", "Straße"]),
        ("😀 ﬁle FILE file e\u0301", ["ﬁle", "FILE", "file"]),
        ("cafe\u0301 CAFÉ cafe", ["cafe\u0301", "CAFÉ", "cafe"]),
        ("我在東京市", ["東京"]),
    ],
)
def test_terms_examples(text, expected):
    detect = terms(TermsDetector(name="terms", values=("John Smith", "strasse", "file", "café", "東京")))
    (spans,) = detect([document(text)])
    assert [text[span.start : span.end] for span in spans] == expected


def test_term_files(tmp_path):
    path = tmp_path / "terms.txt"
    path.write_bytes(b"\xef\xbb\xbfalpha\r\n\nbeta  gamma\n")
    (spans,) = terms(TermsDetector(name="terms", path=path))([document("Alpha and beta gamma")])
    assert len(spans) == 2
    path.write_bytes(b"ok\nsecret\xff\n")
    with pytest.raises(InputError, match=r"terms.txt: line 2 is not valid UTF-8; save it as UTF-8"):
        terms(TermsDetector(name="terms", path=path))
    path.write_bytes(b"\n \n")
    with pytest.raises(InputError, match="there is no term"):
        terms(TermsDetector(name="terms", path=path))
    with pytest.raises(InputError, match="cannot read"):
        terms(TermsDetector(name="terms", path=tmp_path / "none"))


@pytest.mark.parametrize(("k", "expected"), [(2, ["Onlyone", "unseen"]), (3, ["Onlyone", "shared", "unseen"])])
def test_rare_terms_against_a_graph_by_hand(k, expected):
    rare = RareTerms(RareTermsDetector(name="rare_terms", subjects=k))
    for subject, text in (
        ("a", "common shared onlyone"),
        ("a", "onlyone ONLYONE common"),
        ("b", "Common SHARED"),
        ("c", "common"),
        (None, "onlyone"),
    ):
        rare.add(document(text, subject))
    text = "Onlyone shared common unseen abc"
    (spans,) = rare.detect([document(text)])
    assert [text[span.start : span.end] for span in spans] == expected
    assert {(span.kind, span.sensitivity) for span in spans} == {("RARE_TERM", "indirect")}


def span(start: int, end: int, sensitivity: str = "direct", kind: str = "A", detector: str = "x") -> Span:
    return Span(start, end, kind, sensitivity, detector)


def test_merge_takes_the_class_that_protects_most_and_the_union():
    spans = [span(8, 12, "direct", "D"), span(0, 9, "indirect", "I"), span(11, 20, "confidential", "C"), span(20, 22)]
    assert merge(spans) == [span(0, 20, "direct", "D"), span(20, 22)]
    assert merge([span(0, 9, detector="closure"), span(0, 4, kind="B")]) == [span(0, 9, kind="B")]


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from(["direct", "indirect", "confidential"])),
        max_size=8,
    ),
    st.randoms(),
)
def test_merge_covers_the_same_characters_in_any_order(raw, random):
    spans = [span(start, start + size, sensitivity) for start, size, sensitivity in raw]
    merged = merge(spans)
    random.shuffle(spans)
    assert merge(spans) == merged == merge(merged)
    assert {i for s in merged for i in range(s.start, s.end)} == {i for s in spans for i in range(s.start, s.end)}
    assert all(left.end <= right.start for left, right in pairwise(merged))


def blacklist(found: Iterable[tuple[Document, Span]]) -> Blacklist:
    made = Blacklist()
    for one in found:
        made.add(values_of([one]))
    return made


def test_blacklist_finds_values_elsewhere_and_leaves_single_characters():
    source = document("Ann Doe J. - 7")
    spans = [span(0, 7, "indirect"), span(8, 10), span(11, 12), span(13, 14), span(0, 7, "direct", "P")]
    found = blacklist((source, s) for s in spans).occurrences(document("ANN\u00a0DOE and J. - 7 Anndoe"))
    assert found == [Span(0, 7, "P", "direct", "closure")]


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, st.data())
def test_blacklist_finds_what_an_automaton_of_the_values_finds(texts, other, data):
    found = []
    for text in filter(None, texts):
        for start, size, kind, sensitivity in data.draw(
            st.lists(
                st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from("AB"), st.sampled_from([*PROTECTION])),
                max_size=3,
            )
        ):
            start = min(start, len(text) - 1)
            found.append((document(text), span(start, min(start + size, len(text)), sensitivity, kind)))
    values: dict[str, tuple[str, str]] = {}
    for source, one in found:
        for key in value_keys(source.text[one.start : one.end]):
            known = values.get(key)
            if sum(map(str.isalnum, text_of_key(key))) >= 2 and (
                known is None or PROTECTION[one.sensitivity] > PROTECTION[known[1]]
            ):
                values[key] = (one.kind, one.sensitivity)
    automaton, closed = TermMatcher(values.items()), blacklist(found)
    for text in (*texts, other, " ".join(texts)):
        expected = {
            Span(start, end, *label, "closure") for view in views(text) for start, end, label in automaton.find(view)
        }
        assert closed.occurrences(document(text)) == sorted(expected)


def test_a_blacklist_of_many_values_is_small_and_finds_them_all():
    """An automaton of these takes 25 MB."""
    count = 50_000
    made, text = Blacklist(), " ".join(f"mail.{i}@host{i % 7}.org" for i in range(count))
    tracemalloc.start()
    for start in range(0, count, 1000):
        words = (f"mail.{i}@host{i % 7}.org" for i in range(start, start + 1000))
        made.add(values_of((document(word), span(0, len(word))) for word in words))
    made.add(values_of([(document("Ann Doe"), span(0, 7))]))
    assert len(made.occurrences(document("Tell Ann Doe"))) == 1
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 30 * count
    assert len(made.occurrences(document(text))) == count


def test_value_id_is_keyed_and_ignores_spelling():
    assert value_id(b"k", "A", "Ann  DOE") == value_id(b"k", "A", "ann doe") != value_id(b"l", "A", "ann doe")
    assert value_id(b"k", "B", "ann doe") != value_id(b"k", "A", "ann doe")


def rare_in(texts: dict[str, list[str]], text: str) -> list[str]:
    rare = RareTerms(RareTermsDetector(name="rare_terms"))
    for subject, own in texts.items():
        for one in own:
            rare.add(document(one, subject))
    (spans,) = rare.detect([document(text)])
    return [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    ("name", "common"),
    [
        ("प्रियंका", "रोगी {} घर गई"),
        ("கிருஷ்ணமூர்த்தி", "நோயாளி {} வந்தார்"),
        ("مُحَمَّدٌ", "المريض {} هنا"),
        ("Núñez-O'Brien", "the patient {} was seen"),
        ("王小明", "患者{}昨天来院"),
        ("山田太郎", "患者の{}さんが来院した"),
        ("マリア", "患者の{}さんが来院した"),
        ("김철수", "환자 {} 방문"),
    ],
)
def test_rare_terms_in_every_script(name, common):
    """The whole name, with its marks, and nothing of what two people's records share."""
    texts = {"a": [common.format(name)], "b": [common.format("")]}
    found = rare_in(texts, common.format(name))
    assert found == [name]
    assert rare_in(texts, common.format("")) == []


def test_a_name_is_rare_though_its_person_has_two_spellings_of_one_id():
    texts = {"P-17": ["Vollbrecht came home"], "p 17": ["Vollbrecht came home"], "P-18": ["somebody came home"]}
    assert rare_in(texts, "Vollbrecht came home") == ["Vollbrecht"]


def test_ordinary_words_of_general_text_are_common_in_a_small_corpus():
    rare = RareTerms(RareTermsDetector(name="rare_terms"))
    rare.add(document("Walter was seen with Vollbrecht today", "a"))
    for i, text in enumerate(("Was he seen there today, Walter?", "Walter has seen it today, with us", "with")):
        rare.add_general(Document(i, None, text, "general_train"))
    text = "Walter was seen with Vollbrecht today"
    (spans,) = rare.detect([document(text)])
    assert [text[span.start : span.end] for span in spans] == ["Walter", "Vollbrecht"]
