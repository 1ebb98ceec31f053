"""Labels as annotation tools write them give the same spans, and what is written for a tool comes back as it was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sani_dist.config import CorpusSettings
from sani_dist.corpus import detect_spans, review_table
from sani_dist.corpus.annotations import parse_spans
from sani_dist.corpus.read import read_records
from sani_dist.corpus.review_tools import TOOLS
from sani_dist.corpus.tables import SpanReader, read_documents
from sani_dist.errors import InputError

from .conftest import KEY

TEXT = "Zebulon came, and\nQuack left"
EXPECTED = [("Zebulon", "PER"), ("Quack", "LOC")]

I2B2_2014 = """<?xml version="1.0" encoding="UTF-8" ?>
<deIdi2b2><TEXT><![CDATA[Zebulon came, and
Quack left]]></TEXT><TAGS>
<NAME id="P0" start="0" end="7" text="Zebulon" TYPE="PER" comment="" />
<LOC id="P1" start="18" end="23" text="Quack" comment="" /></TAGS></deIdi2b2>"""
I2B2_2006 = """<ROOT><RECORD ID="1"><TEXT><PHI TYPE="PER">Zebulon</PHI> came, and
<PHI TYPE="LOC">Quack</PHI> left</TEXT></RECORD></ROOT>"""
CONLL = "-DOCSTART- O\n\nZebulon NNP B-PER\ncame, VB O\nand CC O\n\nQuack NNP B-LOC\nleft VB O\n"


def label_studio(**more: Any) -> list[dict[str, Any]]:
    def result(start: int, end: int, label: str) -> dict[str, Any]:
        value = {"start": start, "end": end, "text": TEXT[start:end], "labels": [label]}
        return {"value": value, "from_name": "label", "to_name": "text", "type": "labels"}

    choice = {"value": {"choices": ["good"]}, "type": "choices"}
    return [
        {
            "data": {"text": TEXT, "spans": "of before"},
            "annotations": [
                {"result": [result(0, 7, "PER"), choice]},
                {"result": [result(18, 23, "LOC"), {"type": "relation"}]},  # of another person
                {"result": [result(8, 12, "X")], "was_cancelled": True},
            ],
        }
    ]


def pieces(keys: str) -> list[dict[str, Any]]:
    start, end, kind = keys.split()
    return [{start: 0, end: 7, kind: "PER"}, {start: 18, end: 23, kind: "LOC"}]


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("ls.json", json.dumps(label_studio(), indent=1), "spans"),
        ("ls-min.json", json.dumps([{"text": TEXT, "label": [{**p, "labels": [p["x"]]} for p in pieces("start end x")]}]), "label"),
        ("doccano.jsonl", json.dumps({"text": TEXT, "label": [[0, 7, "PER"], [18, 23, "LOC"]]}), "label"),
        ("doccano.jsonl", json.dumps({"text": TEXT, "entities": pieces("start_offset end_offset label")}), "entities"),
        ("spacy.jsonl", json.dumps({"text": TEXT, "ents": pieces("start end label")}), "ents"),
        ("spacy.json", json.dumps([[TEXT, {"entities": [[0, 7, "PER"], [18, 23, "LOC"]]}]]), "spans"),
        ("ai4privacy.jsonl", json.dumps({"text": TEXT, "privacy_mask": json.dumps(pieces("start end label"))}), "privacy_mask"),
        ("pairs.jsonl", json.dumps({"text": TEXT, "s": [[0, 7, "PER"], [7, 18, "O"], [18, 23, "LOC"]]}), "s"),
        ("x.conll", CONLL, "spans"),
        ("x.bio", CONLL.replace("B-", "I-").replace(" ", "\t"), "spans"),
        ("x.iob", CONLL.replace("B-", "S-").partition("\n\n")[2].replace("\n\n", "\n"), "spans"),
        ("2014.xml", I2B2_2014, "spans"),
        ("2006.xml.", I2B2_2006, "spans"),
    ],
)  # fmt: skip
def test_labels_of_tools(tmp_path: Path, name: str, content: str, column: str) -> None:
    path = tmp_path / name.rstrip(".")
    path.write_text(content)
    (record,) = read_records(str(path), "text", None, column)
    assert record.text.split() == TEXT.split()
    spans = parse_spans(record.spans, record.text, "record 1")
    assert [(record.text[s.start : s.end], s.kind) for s in spans] == EXPECTED


def test_brat_beside_its_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.ann").write_text(
        "T1\tPER 0 7\tZebulon\nR1\tof Arg1:T1 Arg2:T2\nT2\tPER 8 12;18 23\tcame Quack\n#1\tNote T1\tx\n"
    )
    (tmp_path / "b.txt").write_text("nobody looked at this")
    (tmp_path / "c.ann").write_text("")
    first, second = read_records(str(tmp_path), "text", None, "spans")
    assert second.spans is None
    spans = parse_spans(first.spans, first.text, "record 1")
    assert [first.text[s.start : s.end] for s in spans] == ["Zebulon", "came", "Quack"]


def test_conll_of_every_scheme(tmp_path: Path) -> None:
    tags = ["B-A", "I-A", "B-A", "I-B", "O", "S-A", "S-A", "B-A", "E-A", "I-A", "U-A", "B-A", "L-A", "A", "A"]
    (tmp_path / "x.conll").write_text("".join(f"w{i}\t{tag}\n" for i, tag in enumerate(tags)))
    (record,) = read_records(str(tmp_path / "x.conll"), "text", None, "spans")
    assert [record.text[s["start"] : s["end"]] for s in record.spans] == [
        "w0 w1", "w2", "w3", "w5", "w6", "w7 w8", "w9", "w10", "w11 w12", "w13 w14",
    ]  # fmt: skip


# Offsets


def test_offsets_in_utf16_are_recognised_where_a_text_contradicts() -> None:
    text = "😀😀 Zebulon 😀 Quack"
    in_utf16 = [{"start": 5, "end": 12, "label": "A", "text": "Zebulon"}, {"start": 16, "end": 21, "label": "A"}]
    assert [text[s.start : s.end] for s in parse_spans(in_utf16, text, "r")] == ["Zebulon", "Quack"]
    in_characters = [{"start": 3, "end": 10, "label": "A", "text": "Zebulon"}]
    assert [text[s.start : s.end] for s in parse_spans(in_characters, text, "r")] == ["Zebulon"]


@pytest.mark.parametrize(
    "span",
    [
        {"start": 4, "end": 11, "label": "A", "text": "Zebulon"},  # neither way
        {"start": 7, "end": 14, "label": "A", "text": "Zebulon"},
        {"start": 1, "end": 12, "label": "A", "text": "Zebulon"},  # inside a character
        {"start": 10**6, "end": 10**6 + 7, "label": "A", "text": "Zebulon"},
        {"value": {"start": 4, "end": 11, "text": "Zebulon", "labels": ["A"]}},
    ],
)
def test_offsets_that_fit_neither_way_are_refused(span: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"record 7, span 1: (its text is not what stands|reaches beyond)") as error:
        parse_spans([span], "😀😀 Zebulon 😀 Quack", "record 7")
    assert "Zebulon" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.conll", "Zebulon\n", "line 1 is not a token and its tag"),
        ("x.xml", "<a>Zebulon", "is not valid XML"),
        ("x.xml", "<a>Zebulon</a>", "neither TEXT nor RECORD"),
        ("x.xml", '<!DOCTYPE a [<!ENTITY b "Zebulon">]><a><TEXT>&b;</TEXT></a>', "declares a document type"),
        ("x.xml", '<a><TEXT>b</TEXT><TAGS><A start="Zebulon" end="1"/></TAGS></a>', "needs whole numbers"),
        ("x.xml", "<a>" * 100_000, "is not valid XML"),
        ("f/x.ann", "T1 PER 0 7 Zebulon\n", "line 1 of its .ann"),
    ],
)
def test_damaged_files_of_tools(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    if path.parent != tmp_path:
        (path.parent / "x.txt").write_text("a")
        path = path.parent
    with pytest.raises(InputError, match=message) as error:
        list(read_records(str(path), "text", None, "spans"))
    assert "Zebulon" not in str(error.value)


@pytest.mark.parametrize("kind", ["\ud800", "", 7, None, []])
def test_kinds_that_are_none(kind: object) -> None:
    with pytest.raises(InputError, match="needs `kind`"):
        parse_spans([{"start": 0, "end": 1, "kind": kind}], "a", "r")


# There and back

ROWS = [
    {"text": "😀 Zebulon  came,\r\n😀 with Quack-77's dog\tand\x07 Zebulon\x0c left", "note": 1},
    {"text": "Nobody here & nothing <b> ]]> # text = x"},
    {"text": "Ottoline"},
]


@pytest.fixture
def found(tmp_path: Path, jsonl) -> CorpusSettings:
    detect = [
        {"name": "terms", "values": ["Zebulon", "Ottoline"], "kind": "PERSON", "sensitivity": "direct"},
        {"name": "terms", "values": ["Quack-77"], "kind": "RECORD NO", "sensitivity": "indirect"},
    ]
    settings = CorpusSettings(source=jsonl(ROWS), general=jsonl(["plain text"] * 5, "general"), detect=detect)
    detect_spans(settings, None, tmp_path / "run", KEY)
    return settings


def spans_of(run: Path) -> list[tuple[str, str, str]]:
    (batch,) = read_documents(run / "corpus" / "documents.parquet")
    return [
        (document.text[s.span.start : s.span.end], s.span.kind.replace("_", " "), s.span.sensitivity)
        for document, spans in zip(batch, SpanReader(run / "corpus" / "spans.parquet").of([d.id for d in batch]), strict=True)
        for s in spans
    ]  # fmt: skip


@pytest.mark.parametrize("tool", ["csv", *TOOLS])
def test_a_review_comes_back_as_it_was_found(tmp_path: Path, found: CorpusSettings, tool: str) -> None:
    path = review_table(tmp_path / "run", tool)
    files = [path] if path.is_file() else [*path.iterdir(), path]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    annotated = found.model_copy(update={"spans": str(path), "detect": ()})
    annotated = CorpusSettings.model_validate({**annotated.model_dump(), "detect": [{"name": "annotations"}]})
    detect_spans(annotated, None, tmp_path / "again", KEY)
    assert spans_of(tmp_path / "again") == spans_of(tmp_path / "run")
    assert len(spans_of(tmp_path / "run")) == 4
    assert review_table(tmp_path / "run", tool) == path  # written anew, not beside


def test_a_correction_counts(tmp_path: Path, found: CorpusSettings) -> None:
    path = review_table(tmp_path / "run", "doccano")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["label"] = []  # a false alarm, in all of the document
    rows[1]["label"] = [[0, 6, "PERSON"]]  # what was missed
    corrected = tmp_path / "corrected.jsonl"
    corrected.write_text("".join(json.dumps({**row, "id": 99}) + "\n" for row in reversed(rows)))
    settings = {**found.model_dump(), "spans": str(corrected), "detect": [{"name": "annotations"}]}
    detect_spans(CorpusSettings.model_validate(settings), None, tmp_path / "again", KEY)
    assert [value for value, _, _ in spans_of(tmp_path / "again")] == ["Nobody", "Ottoline"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "does not have the text of document 2"),
        (lambda rows: [*rows, {"text": "Zebulon", "label": []}], "record 4 has a text that the corpus does not have"),
        (lambda rows: [{"text": rows[0]["text"]}, *rows[1:]], "record 1 has no text, or no spans"),
    ],
)
def test_a_correction_of_another_corpus_is_refused(
    tmp_path: Path, found: CorpusSettings, change: Any, message: str
) -> None:
    path = review_table(tmp_path / "run", "doccano")
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**found.model_dump(), "spans": str(path), "detect": [{"name": "annotations"}]}
    with pytest.raises(InputError, match=message):
        detect_spans(CorpusSettings.model_validate(settings), None, tmp_path / "again", KEY)


def test_an_unknown_tool(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--review-as: expected one of csv, label-studio"):
        review_table(tmp_path, "word")
