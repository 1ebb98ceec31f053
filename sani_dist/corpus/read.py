"""Records from JSONL, CSV, Parquet, text files, a `datasets` folder or a hub id, streamed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sani_dist.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Records decoded at a time from columnar files: bounds the memory, and costs nothing measurable.
_BATCH = 256
_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


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

    source: JSONL, CSV or Parquet file; folder of .txt files (columns `text`, `file`, `folder`); folder written by
        `datasets.save_to_disk`; folder or hub id that `datasets.load_dataset` knows (split `train`, streamed).
    text: column of the text. A chat, a list of {role, content} as in `messages`, is rendered with the tokenizer's
        template.
    lenient: for the files beside the corpus: `subject` and `spans` may be missing, and where the column of the text is
        missing the column called `text` is taken.

    Raises `InputError` in one line with the file and the record, and never with what the record says.
    """
    empty = True
    for number, row in read_rows(source):
        where = f"{source}: record {number}"
        column = "text" if lenient and text not in row and "text" in row else text
        # JSONL may leave out what is null, but the first record tells whether a column is there at all.
        needed = [column] if lenient or not empty else [column, *(c for c in (subject, spans) if c)]
        for name in needed:
            if name not in row:
                raise InputError(f"{where} has no column `{name}`; it has {', '.join(map(str, row)) or 'none'}")
        empty = False
        content = _text(row[column], column, where, tokenizer)
        if content.strip():
            owner = None if subject is None else row.get(subject)
            yield Record(
                number, content, None if owner is None else str(owner), None if spans is None else row.get(spans)
            )
    if empty:
        raise InputError(f"{source} is empty; expected at least one record")


def read_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (record number from 1, values by column) of any source that `read_records` takes, unchecked."""
    path = Path(source)
    try:
        if path.is_file():
            yield from _file_rows(path)
        elif path.is_dir():
            yield from _folder_rows(path)
        elif path.suffix in _FILE_SUFFIXES or path.is_absolute() or source.startswith(".") or source.count("/") > 1:
            raise InputError(f"{source} does not exist")
        else:
            yield from _load_dataset_rows(source)
    except OSError as error:
        raise InputError(f"cannot read {source} ({error.strerror or type(error).__name__})") from None


def _file_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    formats: dict[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _jsonl_rows,
        ".csv": read_csv,
        ".parquet": _parquet_rows,
    }
    if path.suffix not in formats:
        raise InputError(f"{path}: unknown kind of file; expected .jsonl, .csv, .parquet, or a folder")
    return formats[path.suffix](path)


def _folder_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return _saved_dataset_rows(path)
    files = sorted(path.rglob("*.txt"))
    if files:
        return _text_file_rows(path, files)
    if any(file.suffix in _FILE_SUFFIXES for file in path.rglob("*")):
        return _load_dataset_rows(str(path))
    raise InputError(f"{path} holds no .txt files and is not a `datasets` folder")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InputError(f"{path}: line {number} is not valid UTF-8") from None


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise InputError(f"{path}: line {number} is not valid JSON; expected one object a line") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is not a JSON object; expected one object a line")
        yield number, row


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (record number from 1, cells by column) of a CSV file; `InputError` if it is not well-formed."""
    csv.field_size_limit(2**31 - 1)  # Python's own limit of 128 KB is less than a long document
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, [])
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) != len(header):
                raise InputError(f"{path}: record {number} has {len(cells)} cells; the header has {len(header)}")
            yield number, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num} is not valid CSV ({error})") from None


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                for i in range(len(batch)):
                    number += 1
                    yield number, batch.slice(i, 1).to_pylist()[0]
    except UnicodeDecodeError:
        raise InputError(f"{path}: record {number} is not valid UTF-8") from None
    except pa.ArrowException:
        raise InputError(f"{path} is not a readable Parquet file") from None


def _text_file_rows(folder: Path, files: list[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, path in enumerate(files, 1):
        name = path.relative_to(folder)
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise InputError(f"{path}: line {line} is not valid UTF-8") from None
        yield number, {"text": text, "file": name.as_posix(), "folder": name.parent.as_posix()}


def _saved_dataset_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # what `datasets` raises for a damaged folder is not documented
        raise InputError(f"{path} is not a readable `datasets` folder ({type(error).__name__})") from None
    if isinstance(dataset, DatasetDict):
        if "train" not in dataset and len(dataset) != 1:
            raise InputError(f"{path} has the splits {', '.join(map(str, dataset))}; name the folder of one of them")
        dataset = dataset["train"] if "train" in dataset else next(iter(dataset.values()))
    assert isinstance(dataset, Dataset)
    return _numbered(path, dataset)


def _load_dataset_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(source, split="train", streaming=True)
    except Exception as error:  # offline, no such dataset, no such split, gated: all the user needs is the name
        reason = type(error).__name__
        raise InputError(
            f"{source} is no file or folder here, and `datasets` cannot load its split train ({reason})"
        ) from None
    return _numbered(source, dataset)


def _numbered(source: str | Path, dataset: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    rows, number = iter(dataset), 0
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the message may quote the record
            raise InputError(f"{source}: record {number} cannot be read ({type(error).__name__})") from None
        yield number, row


def _text(value: Any, column: str, where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if value is None:
        return ""
    if column == "messages" and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise InputError(f"{where}: column `messages` is not valid JSON") from None
    if isinstance(value, list):
        value = _rendered_chat(value, column, where, tokenizer)
    if not isinstance(value, str):
        raise InputError(f"{where}: column `{column}` is not text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can say \ud800, half of a character
        raise InputError(f"{where}: column `{column}` is not valid Unicode") from None
    return value


def _rendered_chat(chat: list[Any], column: str, where: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in chat
    ):
        raise InputError(f"{where}: column `{column}` must be text or a list of {{role, content}}")
    if not chat:
        return ""
    if tokenizer is None or not tokenizer.chat_template:
        raise InputError(f"{where}: column `{column}` is a chat, but the model's tokenizer has no chat template")
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False))
    except Exception as error:  # a template may refuse a role or an order, in words that quote the message
        raise InputError(f"{where}: the chat template cannot render it ({type(error).__name__})") from None
