"""Every format gives the same records, and every bad input one clear line without a value in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sani_dist.corpus.annotations import parse_spans
from sani_dist.corpus.read import read_records
from sani_dist.errors import InputError

ROWS = [
    {"note": "Ann came.\nShe left, é😀", "who": "a"},
    {"note": "  ", "who": "b"},
    {"note": '"quoted", text', "who": "c"},
]
SECRET = "Zyxwort"


def write(path: Path, kind: str) -> str:
    file = path / f"x.{kind}"
    if kind == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif kind == "csv":
        with file.open("w", newline="", encoding="utf-8-sig") as out:
            writer = csv.DictWriter(out, ["note", "who"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    elif kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(file)
    else:  # a folder that load_dataset streams
        file.mkdir()
        pq.write_table(pa.Table.from_pylist(ROWS), file / "train.parquet")
    return str(file)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved", "loaded"])
def test_every_format_gives_the_same_records(tmp_path, kind):
    records = list(read_records(write(tmp_path, kind), "note", "who"))
    assert [(r.number, r.text, r.subject) for r in records] == [(1, ROWS[0]["note"], "a"), (3, ROWS[2]["note"], "c")]


def test_text_folder(tmp_path):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "1.txt").write_text("one")
    (tmp_path / "bob.txt").write_text("two")
    records = list(read_records(str(tmp_path), "text", "folder"))
    assert [(r.text, r.subject) for r in records] == [("one", "ann"), ("two", ".")]


def test_chats_are_rendered_with_the_template(jsonl, tokenizer):
    source = jsonl([{"messages": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(InputError, match=r"record 1: column `messages` is a chat, but .* no chat template"):
        list(read_records(source, "messages", tokenizer=tokenizer))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    try:
        assert [r.text for r in read_records(source, "messages", tokenizer=tokenizer)] == ["<user>hi"]
    finally:
        tokenizer.chat_template = None


def test_files_beside_the_corpus_may_lack_columns(jsonl):
    source = jsonl([{"text": "x"}])
    assert next(read_records(source, "note", "who", "spans", lenient=True)).text == "x"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", None, "x.jsonl does not exist"),
        ("x.jsonl", b"", "x.jsonl is empty; expected at least one record"),
        ("x.jsonl", b'{"note": "Zyxwort"}\n', "record 1 has no column `text`; it has note"),
        ("x.jsonl", b'{"text": "Zyxwort"}\n{"text": "Zyxwort}\n', "line 2 is not valid JSON"),
        ("x.jsonl", b'["Zyxwort"]\n', "line 1 is not a JSON object"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "Zyxwort \xff"}\n', "line 2 is not valid UTF-8"),
        ("x.jsonl", b'{"text": "Zyxwort \\ud800"}\n', "record 1: column `text` is not valid Unicode"),
        ("x.jsonl", b'{"text": 7}\n', "record 1: column `text` is not text"),
        ("x.csv", b"text,b\na,Zyxwort\nZyxwort\n", "record 2 has 1 cells; the header has 2"),
        ("x.csv", b'text\n"Zyxwort\n', "is not valid CSV"),
        ("x.csv", b"text\nfine\n\xff Zyxwort\n", "line 3 is not valid UTF-8"),
        ("x.parquet", b"Zyxwort", "is not a readable Parquet file"),
        ("x.doc", b"Zyxwort", "unknown kind of file"),
        ("x/1.txt", b"ok\nZyxwort \xff", "line 2 is not valid UTF-8"),
        ("x/1.doc", b"Zyxwort", "holds no .txt files"),
        ("x/state.json", b"Zyxwort", "is not a readable `datasets` folder"),
    ],
)
def test_bad_input_gives_one_clear_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    source = path if path.parent == tmp_path else path.parent
    with pytest.raises(InputError) as error:
        list(read_records(str(source), "text"))
    assert message in str(error.value)
    assert SECRET not in str(error.value)
    assert "\n" not in str(error.value)


def test_invalid_utf8_in_parquet_names_the_record(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\x03\0\0\0"), pa.py_buffer(b"ab\xff")])
    pq.write_table(pa.table({"text": text}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: record 1 is not valid UTF-8"):
        list(read_records(str(tmp_path / "x.parquet"), "text"))


def test_unreachable_hub_id(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="nobody/nothing-at-all is no file or folder here"):
        list(read_records("nobody/nothing-at-all", "text"))


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ({"start": 0, "end": 9, "kind": "A"}, r"reaches beyond the text, which has 8 characters"),
        ({"start": 3, "end": 3, "kind": "A"}, "is empty or negative"),
        ({"start": -1, "end": 3, "kind": "A"}, "is empty or negative"),
        ({"start": "0", "end": 3, "kind": "A"}, "needs whole numbers"),
        ({"start": 0, "end": 3}, "needs `kind`"),
        ({"start": 0, "end": 3, "kind": "A", "class": "x"}, "must be direct, indirect or confidential"),
        ({"start": 7, "end": 8, "kind": "A"}, "only white space"),
        ("Zyxwort", "must be an object"),
    ],
)
def test_wrong_annotations(span, message):
    with pytest.raises(InputError, match=message) as error:
        parse_spans([span], "Zyxwort ", "x.jsonl: record 4")
    assert "x.jsonl: record 4, span 1" in str(error.value)
    assert SECRET not in str(error.value)


def test_annotations_may_be_json_and_are_trimmed():
    (span,) = parse_spans('[{"start": 0, "end": 8, "kind": "A"}]', "Zyxwort ", "r")
    assert (span.start, span.end, span.sensitivity) == (0, 7, "direct")
