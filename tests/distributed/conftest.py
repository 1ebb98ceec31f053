"""Packed rows that the ranks of several tests read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sani_dist.config import CorpusSettings
from sani_dist.corpus.prepare import prepare
from sani_dist.corpus.rows import PackedRows

from . import plain


@pytest.fixture(scope="session")
def tokens(corpus: dict[str, str], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the corpus as packed rows: enough for rows with several documents and documents in several rows."""
    folder = tmp_path_factory.mktemp("small")
    for name, lines in (("notes", 9), ("general", 15)):
        text = Path(corpus[name]).read_text().splitlines(keepends=True)[:lines]
        (folder / f"{name}.jsonl").write_text("".join(text))
    settings = CorpusSettings.model_validate(
        {
            "source": str(folder / "notes.jsonl"), "general": str(folder / "general.jsonl"), "spans": "spans",
            "detect": [{"name": "annotations"}], "row_length": 96,
        }
    )  # fmt: skip
    prepare(settings, tiny_tokenizer, folder, b"k" * 32)
    found = folder / "tokens" / "epoch-000"
    rows = PackedRows(found / "repair.arrow")
    assert len(rows) >= 4
    assert any(len(list(plain.documents_of(rows, row))) > 1 for row in range(len(rows)))
    return found
