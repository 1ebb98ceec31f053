"""What the ranks of several tests read: packed rows, a model, DeepSpeed files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sani_dist.corpus.rows import PackedRows

from .. import tiny
from . import plain
from .ranks import ROOT


@pytest.fixture(scope="session")
def tokens(corpus: dict[str, str], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the corpus as packed rows: enough for rows with several documents and documents in several rows."""
    found = tiny.pack(corpus, tiny_tokenizer, tmp_path_factory.mktemp("small"), notes=9, general=15)
    rows = PackedRows(found / "repair.arrow")
    assert len(rows) >= 4
    assert any(len(list(plain.documents_of(rows, row))) > 1 for row in range(len(rows)))
    return found


@pytest.fixture(scope="session")
def wide_vocabulary(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 2.7e5 elements: no file keeps them gathered, and masters make 1 MiB a rank, below which nothing goes to NVMe."""
    return tiny.save(tiny.llama(9973), tiny_tokenizer, tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="session")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A supplied file with other values in its section `zero_optimization`; returns its path."""
    folder = tmp_path_factory.mktemp("changed")

    def change(name: str, **values: Any) -> str:
        document = json.loads((ROOT / "ds_configs" / name).read_text())
        document["zero_optimization"].update(values)
        path = folder / f"{len(list(folder.iterdir()))}-{name}"
        path.write_text(json.dumps(document))
        return str(path)

    return change
