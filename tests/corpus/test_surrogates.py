"""Text with fresh identities: same kinds and formats, equal where the true ones were, and never a value of the corpus."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sani_dist.config import CorpusSettings, RepairSettings
from sani_dist.corpus import LEARN, SENSITIVE, PackedRows, prepare
from sani_dist.corpus.span import Document, Span
from sani_dist.corpus.surrogates import Surrogates

from .conftest import KEY


def marked(text: str) -> tuple[Document, list[Span]]:
    """`[KIND:value]` -> a document and its spans."""
    plain, spans, done = "", [], 0
    for match in re.finditer(r"\[([A-Z_]+):([^]]*)\]", text):
        plain += text[done : match.start()]
        spans.append(Span(len(plain), len(plain) + len(match[2]), match[1], "direct", "test"))
        plain, done = plain + match[2], match.end()
    return Document(3, "subject", plain + text[done:], "repair"), spans


def replaced(text: str, epoch: int = 1, seed: int = 0, taken: set[str] | None = None) -> tuple[str, list[str]]:
    """The new text, and what stayed."""
    document, spans = marked(text)
    made, stayed = Surrogates("en_US", seed, (taken or set()).__contains__).replace(document, spans, epoch, Counter())
    assert (made.id, made.split) == (document.id, document.split)
    return made.text, [made.text[span.start : span.end] for span in stayed]


@pytest.mark.parametrize(
    ("kind", "value", "pattern"),
    [
        ("PERSON", "Anna Maria Quill", r"[A-Z][\w'-]+ [A-Z][\w'-]+ [A-Z][\w'-]+"), ("PERSON", "ANNA QUILL", r"[A-Z'-]+ [A-Z'-]+"),
        ("PERSON", "J. Quill", r"[A-Z]\. [A-Z][\w'-]+"), ("RECORD_NUMBER", "QX-77314", r"[A-Z]{2}-\d{5}"),
        ("DATE_TIME", "3 March 1984", r"\d [A-Z][a-z]+ \d{4}"), ("EMAIL_ADDRESS", "quill@hospital.org", r"\w[\w.]*@example\.\w+"),
        ("IP_ADDRESS", "10.0.0.1", r"\d+\.\d+\.\d+\.\d+"), ("LOCATION", "Quillham", r"[A-Z][\w' -]+"),
        ("ADDRESS", "1 High Street", r".*\d.*"),
    ],
)  # fmt: skip
def test_a_surrogate_has_the_kind_and_format_of_its_value(kind: str, value: str, pattern: str) -> None:
    text, stayed = replaced(f"Before [{kind}:{value}], after.")
    match = re.fullmatch(rf"Before ({pattern}), after\.", text)
    assert match is not None, text
    assert match[1] != value
    assert stayed == []


def test_what_no_generator_can_make_stays_and_stays_sensitive() -> None:
    text, stayed = replaced("[PERSON:Anna Quill] came [DATE_TIME:three days ago] about [TERM:Zyxwort].")
    assert stayed == ["three days ago", "Zyxwort"]
    assert "Quill" not in text
    document, spans = marked("[PERSON:Anna Quill] has [TERM:Zyxwort].")
    counts: Counter[tuple[str, str]] = Counter()
    Surrogates("en_US", 0, lambda value: False).replace(document, spans, 1, counts)
    assert counts == {("replaced", "PERSON"): 1, ("kept", "TERM"): 1}


def test_within_a_document_what_was_equal_stays_equal() -> None:
    """The same name in another case, its surname alone, a number twice."""
    text, _ = replaced(
        "[PERSON:Quill] | [PERSON:Anna Quill] | [PERSON:ANNA QUILL] | [N:QX-77314] | [N:QX-77314] | [PERSON:Tom Quill]"
    )
    surname, name, loud, first, second, other = text.split(" | ")
    assert name.endswith(f" {surname}")
    assert loud == name.upper()
    assert first == second
    assert other.endswith(f" {surname}")
    assert other.split()[0] != name.split()[0]


def test_another_epoch_document_or_seed_gives_others_and_the_same_gives_the_same() -> None:
    text = "[PERSON:Anna Quill], [RECORD_NUMBER:QX-77314], [DATE_TIME:1984-03-13]"
    made = replaced(text)
    assert made == replaced(text)
    assert len({made[0], replaced(text, epoch=2)[0], replaced(text, seed=1)[0]}) == 3


def test_no_value_of_the_corpus_is_learnt_as_a_surrogate() -> None:
    """Two-digit months and days leave few dates: nearly all of them taken."""
    text = "[RECORD_NUMBER:1-000] and [PERSON:Anna Quill]"
    free, _ = replaced(text)
    taken = set(free.split(" and "))
    others, _ = replaced(text, taken=taken)
    assert not taken & set(others.split(" and "))
    everything = Surrogates("en_US", 0, lambda value: True)
    document, spans = marked(text)
    same, stayed = everything.replace(document, spans, 1, Counter())
    assert same.text == document.text
    assert stayed == spans


def test_rows_of_an_epoch_have_surrogates_to_learn_and_what_stayed_as_sensitive(
    tmp_path: Path, jsonl: Any, tokenizer: Any
) -> None:
    draw = random.Random(0)
    records = []
    for number in range(12):
        value = f"{draw.choice('QXZ')}{draw.choice('QXZ')}-{draw.randrange(10**5):05d}"
        text = f"Record {value} of the patient: Zyxwort {number}."
        records.append({"text": text, "spans": [{"start": 7, "end": 15, "kind": "RECORD_NUMBER"}]})
    settings = CorpusSettings.model_validate(
        {
            "source": jsonl(records), "spans": "spans", "row_length": 64,
            "detect": [{"name": "annotations"}, {"name": "terms", "values": ["Zyxwort"]}],
        }
    )  # fmt: skip
    repair = RepairSettings.model_validate({"epochs": 2, "objectives": {"surrogate": "en_US"}, "seed": 4})
    summary = prepare(settings, tokenizer, tmp_path / "a", KEY, repair=repair)
    prepare(settings, tokenizer, tmp_path / "b", KEY, repair=repair)
    assert summary["surrogates"] == {"replaced": {"RECORD_NUMBER": 24}, "kept": {"TERM": 24}}
    assert sorted(path.name for path in (tmp_path / "a" / "tokens").iterdir()) == [
        "epoch-000",
        "epoch-001",
        "epoch-002",
    ]
    texts = []
    for name in ("epoch-000", "epoch-001", "epoch-002"):
        path = Path("tokens", name, "repair.arrow")
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
        batch = (rows := PackedRows(tmp_path / "a" / path)).batch(range(len(rows)))
        learnt = tokenizer.decode(batch.input_ids[batch.role == LEARN])
        sensitive = tokenizer.decode(batch.input_ids[batch.role == SENSITIVE])
        assert sensitive.count("Zyxwort") == 12
        numbers = re.findall(r"[A-Z]{2}-\d{5}", sensitive if name == "epoch-000" else learnt)
        assert len(numbers) == 12
        assert np.array_equal(rows.learnable, (batch.role == LEARN).sum(dim=1).numpy())
        texts.append(set(numbers))
    assert len(set.union(*texts)) == 36  # none twice
