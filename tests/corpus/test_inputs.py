"""What people have as text: packed, in other encodings, in folders with other things; each read whole, or refused in one line."""

from __future__ import annotations

import gzip
import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sani_dist.config import CorpusSettings
from sani_dist.config_file import load_config
from sani_dist.corpus import detect_spans
from sani_dist.corpus.documents import folders_said
from sani_dist.corpus.read import read_records
from sani_dist.corpus.sources import locate
from sani_dist.corpus.subjects import subject_of
from sani_dist.errors import InputError

from .conftest import KEY

SECRET = "Zyxwort"


def texts(source: Path | str, **columns: str) -> list[str]:
    return [record.text for record in read_records(str(source), columns.pop("text", "text"), **columns)]


def refusal(source: Path | str, **columns: str) -> str:
    with pytest.raises(InputError) as error:
        texts(source, **columns)
    message = str(error.value)
    assert SECRET not in message
    assert "\n" not in message
    return message


def packed(suffix: str, content: bytes) -> bytes:
    if suffix == ".gz":
        return gzip.compress(content)
    return pa.compress(content, "zstd", asbytes=True) if suffix == ".zst" else content


# Compression and kinds


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"text": "one"}\n{"text": "two"}\n'),
        ("X.JSON", b'[{"text": "one"},\n {"text": "two"}]'),
        ("x.CSV", b"text,n\none,1\ntwo,2\n"),
        ("x.csv", b"text;n\none;1\ntwo;2\n"),  # as spreadsheets of many countries write it
        ("x.tsv", b"text\tn\none\t1\ntwo\t2\n"),
    ],
)
def test_kinds_of_files(tmp_path: Path, name: str, content: bytes, suffix: str) -> None:
    (tmp_path / (name + suffix)).write_bytes(packed(suffix, content))
    assert texts(tmp_path / (name + suffix)) == ["one", "two"]
    assert texts(tmp_path) == ["one", "two"]  # the same of a folder with nothing else


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_is_cut(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    whole = packed(suffix, json.dumps({"text": SECRET * 999}).encode())
    for content in (whole[:-3], b"no such thing", b""):
        path.write_bytes(content)
        assert "cannot be unpacked" in refusal(path) or content == b""


def test_json_arrays_are_read_an_element_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = [{"text": f"a, b] {i}", "more": [[i], {}]} for i in range(50)]
    for indent in (None, 1):
        path.write_text(json.dumps(rows, indent=indent))
        assert texts(path) == [row["text"] for row in rows]
    path.write_text(json.dumps(rows)[:-1])
    assert "it may be cut" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "text,a,text\nZyxwort,1,2\n", "two columns of one name, 1 and 3"),
        ("x.tsv", "text\ttext\nZyxwort\t2\n", "two columns of one name, 1 and 2"),
        ("x.jsonl", '{"text": "Zyxwort", "text": "b"}\n', "line 1 has a key twice"),
        ("x.json", '[{"text": "Zyxwort", "text": "b"}]', "record 1 has a key twice"),
    ],
)
def test_two_columns_of_one_name(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    assert message in refusal(tmp_path / name)


def test_two_columns_of_one_name_in_parquet(tmp_path: Path) -> None:
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "x.parquet"
    )
    assert "two columns of one name, 1 and 2" in refusal(tmp_path / "x.parquet")


def test_a_table_without_header_is_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{SECRET},came\nAnn,left\n")
    assert "no column `text`; it has 2 unusual columns" in refusal(tmp_path / "x.csv")


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "folder/x.txt"])
def test_encodings_with_a_mark(tmp_path: Path, encoding: str, name: str) -> None:
    content = {"x.jsonl": '{"text": "né 😀"}\n', "x.csv": "text\nné 😀\n", "folder/x.txt": "né 😀"}[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode(encoding))
    assert texts(path.parent) == ["né 😀"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.txt"])
@pytest.mark.parametrize(
    ("encoding", "way_out"),
    [("utf-16-le", "iconv -f UTF-16LE"), ("utf-16-be", "NUL characters"), ("cp1252", "iconv -f WINDOWS-1252")],
)
def test_encodings_without_a_mark_are_refused_with_the_way_out(
    tmp_path: Path, name: str, encoding: str, way_out: str
) -> None:
    (tmp_path / name).write_bytes(f'"{SECRET} né"\n'.encode(encoding))
    assert way_out in refusal(tmp_path)


def test_utf16_inside_a_cell(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["Z\0y\0x\0"]}), tmp_path / "x.parquet")
    assert "NUL characters" in refusal(tmp_path / "x.parquet")


# Folders


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def test_papers_and_litter_beside_the_data_are_left_out_and_counted(tmp_path: Path) -> None:
    row = '{"text": "a"}\n'
    fill(
        tmp_path,
        {"notes.jsonl": row, "LICENSE.txt": "b", "README.md": "c", "SHA256SUMS.txt": "d", "._notes.jsonl": "e"},
    )
    fill(
        tmp_path,
        {"__MACOSX/notes.jsonl": "f", ".git/x.txt": "g", "scan.pdf": "h", "COPYING": "i", "dataset_infos.json": "{}"},
    )
    assert texts(tmp_path) == ["a"]
    said = folders_said(CorpusSettings(source=str(tmp_path), target={"values": ["a"]}))
    assert said == {
        "source": "1 .jsonl files are read; ignored: 3 hidden, 5 licences, readmes or checksums, 1 of other kinds"
    }


@pytest.mark.parametrize("more", [{"b.jsonl": "{}"}, {"b.csv": "text\n", "c.parquet": ""}])
def test_a_folder_of_several_kinds_is_refused(tmp_path: Path, more: dict[str, str]) -> None:
    assert "several kinds (" in refusal(fill(tmp_path, {"Zyxwort.txt": "a", **more}))


def test_only_a_licence_is_no_data(tmp_path: Path) -> None:
    assert "holds no .txt files" in refusal(fill(tmp_path, {"LICENCE.txt": SECRET}))


def test_upper_case_and_packed_texts(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.TXT": "one"})
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two"))
    assert texts(tmp_path) == ["one", "two"]
    fill(tmp_path, {"b.txt": "two"})
    assert "packed and unpacked" in refusal(tmp_path)


def test_the_folder_of_a_document_is_seen_from_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"s/ann/1.txt": "one", "s/2.txt": "two"})
    monkeypatch.chdir(tmp_path / "s")
    for source in (".", "../s/", str(tmp_path / "s")):
        assert [record.subject for record in read_records(source, "text", "folder")] == [".", "ann"]


def test_only_the_training_split_of_a_folder(tmp_path: Path) -> None:
    fill(
        tmp_path, {f"{name}.jsonl": f'{{"text": "{name}"}}\n' for name in ("train-0001", "test", "validation", "more")}
    )
    assert texts(tmp_path) == ["more", "train-0001"]
    assert "2 of test or validation" in str(locate(str(tmp_path)).said())


def test_a_broken_file_of_a_folder_is_named_by_its_number(tmp_path: Path) -> None:
    fill(tmp_path, {"a.txt": "fine", "Zyxwort.txt": "x"})
    (tmp_path / "Zyxwort.txt").write_bytes(b"ok\n\xff")
    assert "file 1 of 2: line 2 is not valid UTF-8" in refusal(tmp_path)


def test_folders_of_very_many_files(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"{i}.bin").touch()
    fill(tmp_path, {"a.jsonl": '{"text": "a"}\n'})
    assert locate(str(tmp_path)).ignored["of other kinds"] == 3000
    assert texts(tmp_path) == ["a"]


# What is no file


def test_pipes_devices_and_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    assert "no regular file" in refusal(tmp_path / "x.jsonl")
    assert "no regular file" in refusal("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s.csv")
        assert "no regular file" in refusal(tmp_path / "s.csv")
        fill(tmp_path, {"a.jsonl": '{"text": "a"}\n'})
        (tmp_path / "broken.jsonl").symlink_to("nowhere")
        assert texts(tmp_path) == ["a"]
        assert locate(str(tmp_path)).ignored == {"links to folders or nothing, pipes or devices": 3}


@pytest.mark.parametrize("setting", ["terms", "spans"])
def test_pipes_beside_the_corpus(tmp_path: Path, jsonl, setting: str) -> None:
    os.mkfifo(tmp_path / "p.csv")
    path = str(tmp_path / "p.csv")
    detect = {"name": "terms", "path": path} if setting == "terms" else {"name": "annotations"}
    settings = CorpusSettings(source=jsonl(["a b"]), detect=[detect], spans=path if setting == "spans" else None)
    with pytest.raises(InputError, match="no regular file"):
        detect_spans(settings, None, tmp_path / "run", KEY)


@pytest.mark.parametrize(
    "source",
    [
        "notes.jsonl",
        "data/notes",
        "datta/notes.JSONL.gz",
        "./notes",
        "../a/b",
        "~/notes",
        "notes",
        "a/b/c",
        "a b/c",
        "x/",
        "\0",
        "n" * 999,
    ],
)
def test_a_mistyped_path_is_never_asked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    import datasets

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("a name went to the hub")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    message = refusal(source)
    assert "does not exist" in message or "cannot read" in message


@pytest.mark.parametrize("source", ["org/name", "hf://org/name", "hf://datasets/org/name"])
def test_names_of_the_hub(source: str) -> None:
    assert (locate(source).form, locate(source).name) == ("hub", "org/name")


def test_a_mistyped_path_beside_the_settings_file_is_local(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"data/notes.jsonl": "", "s.yaml": "model: {path: m}\ncorpus: {source: data/nots, target: {values: [a]}}\n"},
    )
    assert load_config(tmp_path / "s.yaml", [], "paper").corpus.source == str(tmp_path / "data" / "nots")


# Subjects and targets


@pytest.mark.parametrize("value", [17, 17.0, "17", " 17 ", "17.0", "17.", b"17", "\uff11\uff17"])
def test_one_person_however_written(value: object) -> None:
    assert subject_of(value) == "17"


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "NaN", "null", "None", "<NA>", float("inf")])
def test_nobody(value: object) -> None:
    assert subject_of(value) is None


def test_subjects_stay_apart() -> None:
    assert len({subject_of(value) for value in (17, 17.5, "017", "17a", "p 17", True, "-17", 10**30)}) == 8


def test_subjects_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "who": ["Zyxwort"]}\n')
    assert "column of the name that the settings give is neither text nor a number" in refusal(path, subject="who")
    path.write_text('{"text": "a", "who": "\\ud800"}\n')
    (record,) = read_records(str(path), "text", "who")
    assert record.subject is not None
    record.subject.encode()


def test_a_nullable_column_of_numbers_names_its_target(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"who": [17.0, None, 18.0], "text": ["Ann came", "Bob came", "Eve came"]}), tmp_path / "x.parquet"
    )
    settings = CorpusSettings(
        source=str(tmp_path / "x.parquet"), subject="who", target={"subjects": ["17"]},
        detect=[{"name": "terms", "values": ["Ann", "Bob", "Eve"]}],
    )  # fmt: skip
    assert detect_spans(settings, None, tmp_path / "run", KEY).kinds["repair"] == {"TERM": 1}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"values": ["Ann", "Zyxwort"]}, "corpus.target.values: entry 2 matches nothing"),
        ({"values": ["Zyxwort", "Ann"]}, "corpus.target.values: entry 1 matches nothing"),
        ({"values": ["Ann", " "]}, "corpus.target.values: entry 2 matches nothing"),
        ({"values": ["Ann"], "subjects": ["17", "Zyxwort"]}, "corpus.target.subjects: entry 2 matches nothing"),
        ({"subjects": ["nan"]}, "corpus.target.subjects: entry 1 matches nothing"),
    ],
)
def test_a_target_that_matches_nothing(tmp_path: Path, jsonl, target: dict[str, list[str]], message: str) -> None:
    source = jsonl([{"who": 17, "text": "Ann came"}, {"who": None, "text": "Ann left"}])
    # What nobody trains on does not count.
    control = jsonl([{"text": "Zyxwort came"}], "control")
    settings = CorpusSettings(
        source=source, control=control, subject="who", target=target, detect=[{"name": "terms", "values": ["Ann"]}]
    )
    with pytest.raises(InputError, match=message) as error:
        detect_spans(settings, None, tmp_path / "run", KEY)
    assert SECRET not in str(error.value)


# Chats

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.tool_calls is defined %}{% for c in m.tool_calls %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}"
    "{% if m.name is defined %}!{% endif %}{% endfor %}"
)


@pytest.fixture
def chat_tokenizer(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def test_chats_as_tools_write_them(jsonl, chat_tokenizer) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"who": "Ann"}'}, "index": None}
    parts = [{"type": "text", "text": "Find"}, "Ann", {"type": "text", "text": "now"}]
    chat = [
        {"role": "user", "content": parts, "tool_calls": None, "name": None},  # nulls, as a table has them
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
    ]
    source = jsonl([{"messages": chat}, {"messages": json.dumps(chat)}])
    expected = '<user>Find\nAnn\nnow<assistant>find{"who": "Ann"}<tool>ok'
    assert [r.text for r in read_records(source, "messages", tokenizer=chat_tokenizer)] == [expected] * 2


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Zyxwort", r"message 2: expected an object \{role, content\}"),
        ({"content": "Zyxwort"}, r"message 2: expected an object \{role, content\}"),
        (
            {"role": "user", "content": {"Zyxwort": 1}},
            "message 2: its content is neither text, nor null, nor a list of parts",
        ),
        ({"role": "user", "content": [{"text": "a"}, {"image": "Zyxwort"}]}, "message 2, part 2 is no text"),
        ({"role": "user", "content": "", "tool_calls": "Zyxwort"}, "message 2: `tool_calls` must be a list"),
    ],
)
def test_chats_that_are_none(jsonl, chat_tokenizer, message: object, expected: str) -> None:
    source = jsonl([{"messages": [{"role": "user", "content": "a"}, message]}])
    with pytest.raises(InputError, match=f"record 1: column `messages`, {expected}") as error:
        list(read_records(source, "messages", tokenizer=chat_tokenizer))
    assert SECRET not in str(error.value)


# Depth


def test_deep_json_anywhere(tmp_path: Path, chat_tokenizer) -> None:
    deep = "[" * 100_000
    path = tmp_path / "x.jsonl"
    path.write_text(deep)
    assert "not valid JSON" in refusal(path)
    (tmp_path / "x.json").write_text(deep)
    assert "nested too deeply" in refusal(tmp_path / "x.json")
    path.write_text(json.dumps({"messages": deep}) + "\n")
    assert "not valid JSON" in refusal(path, text="messages")
    path.write_text(json.dumps({"text": "a", "spans": deep}) + "\n")
    settings = CorpusSettings(source=str(path), spans="spans", detect=[{"name": "annotations"}])
    with pytest.raises(InputError, match="the spans are not valid JSON"):
        detect_spans(settings, None, tmp_path / "run", KEY)
