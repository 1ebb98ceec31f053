"""Records of any source: files and folders of tables or documents, exports of annotation tools, `datasets`; streamed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sani_dist import messages
from sani_dist.corpus.annotated_files import brat_spans, conll_rows, i2b2_rows, row_of_tool
from sani_dist.corpus.chats import rendered
from sani_dist.corpus.lines import read_text, text_lines
from sani_dist.corpus.sources import Source, locate, shown
from sani_dist.corpus.strict_json import json_object, json_values
from sani_dist.corpus.subjects import subject_of
from sani_dist.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A row by itself: values by column. Its number, from 1, is that of the line in JSONL, else of the record.
Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row]]

# Records decoded at a time from columnar files: bounds the memory, and costs nothing measurable.
_BATCH = 256


@dataclass(frozen=True)
class Record:
    """One record that has text. `spans`: what the column holds, unchecked; `number`: from 1 (JSONL: the line)."""

    number: int
    text: str
    subject: str | None
    spans: Any


def read_records(
    source: str,
    text: str,
    subject: str | None = None,
    spans: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    lenient: bool = False,
) -> Iterator[Record]:
    """Yield the records of `source` whose text is not empty, in order.

    source: JSONL, JSON, CSV, TSV, Parquet, CoNLL or i2b2 XML file, also with .gz or .zst; folder of such files of one kind, or of
        .txt files (columns `text`, `file`, `folder`, and `spans` where .ann files of brat are beside them); folder written by
        `datasets.save_to_disk`; hub id (split `train`, streamed).
    text: column of the text. A chat, a list of {role, content} as in `messages`, is rendered with the tokenizer's
        template.
    lenient: for the files beside the corpus: `subject` and `spans` may be missing, and where the column of the text is
        missing the column called `text` is taken.

    Raises `InputError` in one line with the file and the record, and never with what the record says.
    """
    empty = True
    for number, row in read_rows(source):
        where = f"{shown(source)}: record {number}"
        column = "text" if lenient and text not in row and "text" in row else text
        # JSONL may leave out what is null, but the first record tells whether a column is there at all.
        needed = [column] if lenient or not empty else [column, *(c for c in (subject, spans) if c)]
        for name in needed:
            if name not in row:
                raise InputError(f"{where} has no {messages.column(name)}; it has {messages.columns(row)}")
        empty = False
        content = _text(row[column], column, where, tokenizer)
        if content.strip():
            labels = None if spans is None else row.get(spans)
            owner = None if subject is None else _subject(row.get(subject), subject, where)
            yield Record(number, content, owner, None if labels == "" else labels)
    if empty:
        raise InputError(f"{shown(source)} is empty; expected at least one record")


def read_rows(source: str) -> Numbered:
    """Yield (record number from 1, values by column) of any source that `read_records` takes, unchecked."""
    try:
        yield from _rows(locate(source), shown(source))
    except OSError as error:
        raise InputError(f"cannot read {shown(source)} ({error.strerror or type(error).__name__})") from None


def read_table(path: Path) -> Numbered:
    """Yield (record number from 1, values by column) of one file. Raises `InputError` if it is not well-formed."""
    return _rows(locate(str(path)), shown(str(path)))


def _rows(source: Source, where: str) -> Numbered:
    if source.form == "saved":
        return _saved_dataset_rows(source.files[0], where)
    if source.form == "hub":
        return _hub_rows(source.name, where)
    if source.kind == "txt" and source.form == "folder":
        return _text_file_rows(source, where)
    if source.kind == "xml":
        return enumerate(chain.from_iterable(i2b2_rows(*named) for named in _named(source, where)), 1)
    formats: dict[str, Callable[[Path, str], Numbered]] = {
        "jsonl": _jsonl_rows,
        "json": _json_rows,
        "csv": _csv_rows,
        "tsv": _tsv_rows,
        "parquet": _parquet_rows,
        "conll": conll_rows,
    }
    if source.kind not in formats:
        raise InputError(f"{where} is one text; put it into a folder of .txt files, or into a table")
    read = formats[source.kind]
    if source.form == "file":
        return read(source.files[0], where)
    rows = (row for path, named in _named(source, where) for _, row in read(path, named))
    return enumerate(rows, 1)


def _named(source: Source, where: str) -> Iterator[tuple[Path, str]]:
    """Files with what messages call them: a file's name may be that of a person."""
    for number, path in enumerate(source.files, 1):
        yield path, where if source.form == "file" else f"{where}: file {number} of {len(source.files)}"


def _jsonl_rows(path: Path, where: str) -> Numbered:
    for number, line in text_lines(path, where):
        if line.strip():
            yield number, _row(json_object(line, f"{where}: line {number}"), f"{where}: line {number}", "line")


def _json_rows(path: Path, where: str) -> Numbered:
    for number, value in enumerate(json_values(path, where), 1):
        yield number, _row(value, f"{where}: record {number}", "record")


def _row(value: Any, where: str, unit: str) -> Row:
    row = row_of_tool(value)
    if row is None:
        raise InputError(f"{where} is not a JSON object; expected one object a {unit}")
    return row


def _csv_rows(path: Path, where: str) -> Numbered:
    return _separated_rows(path, where, ",")


def _tsv_rows(path: Path, where: str) -> Numbered:
    return _separated_rows(path, where, "\t")


def _separated_rows(path: Path, where: str, delimiter: str) -> Numbered:
    csv.field_size_limit(2**31 - 1)  # Python's own limit of 128 KB is less than a long document
    lines = (line for _, line in text_lines(path, where))
    first = next(lines, "")
    if (
        delimiter == "," and ";" in first and "," not in first
    ):  # as spreadsheets write it where the comma is for decimals
        delimiter = ";"
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        _check_unique((name for name in header if name), f"{where}: its header")
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) != len(header):
                raise InputError(f"{where}: record {number} has {len(cells)} cells; the header has {len(header)}")
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error:
        raise InputError(f"{where}: line {reader.line_num} is not valid CSV") from None


def _check_unique(names: Iterable[str], where: str) -> None:
    place: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if place.setdefault(name, number) != number:
            raise InputError(f"{where} has two columns of one name, {place[name]} and {number}; rename one of them")


def _parquet_rows(path: Path, where: str) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _check_unique(file.schema_arrow.names, f"{where}: its schema")
            for batch in file.iter_batches(_BATCH):
                for i in range(len(batch)):
                    number += 1
                    yield number, batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError:
        raise InputError(f"{where}: record {number} is not valid UTF-8") from None
    except pa.ArrowException:
        raise InputError(f"{where} is not a readable Parquet file") from None


def _text_file_rows(source: Source, where: str) -> Numbered:
    for number, (path, named) in enumerate(_named(source, where), 1):
        # A name that is not UTF-8 has halves of characters in it, which no table takes.
        relative = str(path) if source.name == "." else str(path)[len(source.name) :].lstrip("/")  # relative_to is slow
        name = PurePath(relative.encode("utf-8", "backslashreplace").decode())
        row: Row = {"text": read_text(path, named), "file": name.as_posix(), "folder": name.parent.as_posix()}
        if source.annotations:
            beside = source.annotations_of(path)
            row["spans"] = None if beside is None else brat_spans(read_text(beside, f"{named}: its .ann"), named)
        yield number, row


def _saved_dataset_rows(path: Path, where: str) -> Numbered:
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # what `datasets` raises for a damaged folder is not documented
        raise InputError(f"{where} is not a readable `datasets` folder ({type(error).__name__})") from None
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset and len(dataset) != 1:
            raise InputError(f"{where} has {len(dataset)} splits and none is `train`; name the folder of one of them")
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    assert isinstance(dataset, Dataset)
    return _of_dataset(dataset, where)


def _hub_rows(name: str, where: str) -> Numbered:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split="train", streaming=True)
    except Exception as error:  # offline, no such dataset, no such split, gated: all the user needs is the name
        reason = type(error).__name__
        raise InputError(
            f"{where} is no file or folder here, and `datasets` cannot load its split train ({reason})"
        ) from None
    return _of_dataset(dataset, where)


def _of_dataset(dataset: Any, where: str) -> Numbered:
    rows, number = iter(dataset), 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the message may quote the record
            raise InputError(f"{where}: record {number} cannot be read ({type(error).__name__})") from None
        yield number, row


def _subject(value: Any, column: str, where: str) -> str | None:
    try:
        return subject_of(value)
    except ValueError:
        raise InputError(f"{where}: {messages.column(column)} is neither text nor a number") from None


def _text(value: Any, column: str, where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if value is None:
        return ""
    if column == "messages" and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"{where}: column `messages` is not valid JSON") from None
    if isinstance(value, list):
        value = rendered(value, f"{where}: {messages.column(column)}", tokenizer)
    if not isinstance(value, str):
        raise InputError(f"{where}: {messages.column(column)} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can say \ud800, half of a character
        raise InputError(f"{where}: {messages.column(column)} is not valid Unicode") from None
    if "\0" in value:
        raise InputError(
            f"{where}: {messages.column(column)} has NUL characters (UTF-16 that was read as something else?)"
        )
    return value
