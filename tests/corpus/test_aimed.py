"""Where a sensitive value stands first in its row, and where it could be copied from what is before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sani_dist.config import CorpusSettings
from sani_dist.corpus import LEARN, SENSITIVE, PackedRows, prepare
from sani_dist.corpus.rows import AIM
from sani_dist.errors import InputError

from .conftest import KEY

NAMES = ("Zyxwort Quackenbush", "Quackenbush", "Zyx", "4711")


def rows_of(folder: Path, source: str, tokenizer: Any, row_length: int = 512) -> PackedRows:
    settings = CorpusSettings.model_validate(
        {"source": source, "detect": [{"name": "terms", "values": NAMES}], "row_length": row_length}
    )
    prepare(settings, tokenizer, folder, KEY)
    return PackedRows(folder / "tokens" / "epoch-000" / "repair.arrow")


def said(rows: PackedRows, tokenizer: Any, role: int) -> list[str]:
    """The runs of tokens of a role in each document, as text."""
    found = []
    batch = rows.batch(range(len(rows)))
    for ids, roles, documents in zip(
        batch.input_ids.tolist(), batch.role.tolist(), batch.document.tolist(), strict=True
    ):
        run: list[int] = []
        for i, token in enumerate(ids):
            if run and (roles[i] != role or documents[i] != documents[i - 1]):
                found.append(tokenizer.decode(run).strip())
                run = []
            if roles[i] == role:
                run.append(token)
        if run:
            found.append(tokenizer.decode(run).strip())
    return found


def test_a_value_is_first_once_in_each_document(tmp_path: Path, jsonl: Any, tokenizer: Any) -> None:
    """Again: in other case or spacing, or as a part of a longer value that was there. Not again: after a part of it, or inside a word."""
    texts = [
        "note: Quackenbush came with Zyxwort Quackenbush and 4711. zyxwort  quackenbush left, 4711 too.",
        "note: Zyxwort Quackenbush came. Quackenbush left. Then Zyx came, and 4711.",
    ]
    rows = rows_of(tmp_path, jsonl(texts), tokenizer)
    told = rows.aimed()
    first, again = said(told, tokenizer, AIM), said(rows, tokenizer, SENSITIVE)
    assert sorted(first) == sorted(["Quackenbush", "Zyxwort Quackenbush", "4711", "Zyxwort Quackenbush", "Zyx", "4711"])
    assert len(again) == len(first) + 3
    true, batch = rows.batch(range(len(rows))).role, told.batch(range(len(rows))).role
    assert not (batch == SENSITIVE).any()
    assert (batch[true != SENSITIVE] == true[true != SENSITIVE]).all()
    assert (batch[(true == SENSITIVE) & (batch != AIM)] == LEARN).all()  # a copy
    assert told.sensitive.tolist() == (batch == AIM).sum(dim=1).tolist()
    assert told.learnable.tolist() == (batch == LEARN).sum(dim=1).tolist()
    assert (rows.batch([0]).role == SENSITIVE).any()  # as it was


def test_what_stands_in_another_piece_cannot_be_copied(tmp_path: Path, jsonl: Any, tokenizer: Any) -> None:
    """A long document is cut into rows: its value is first in each row that does not show it before."""
    filler = " ".join(f"word{i}" for i in range(60))
    text = f"note: 4711 came. {filler} then 4711 left, {filler} 4711 was back, and 4711 again."
    rows = rows_of(tmp_path, jsonl([text]), tokenizer, row_length=256)
    assert len(rows) > 2
    batch = rows.batch(range(len(rows)))
    first = said(rows.aimed(), tokenizer, AIM)
    assert first == ["4711"] * 3
    assert said(rows, tokenizer, SENSITIVE) == ["4711"] * 4
    assert batch.role.shape == (len(rows), 256)


def test_rows_of_an_earlier_version_are_refused(tmp_path: Path, jsonl: Any, tokenizer: Any) -> None:
    rows_of(tmp_path, jsonl(["note: 4711 came."]), tokenizer)
    path = tmp_path / "tokens" / "epoch-000" / "repair.arrow"
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all().drop_columns(["repeated"])
    older = tmp_path / "older.arrow"
    with pa.OSFile(str(older), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    rows = PackedRows(older)
    assert (rows.batch([0]).role == SENSITIVE).any()
    with pytest.raises(InputError, match="start a new run"):
        rows.aimed()
