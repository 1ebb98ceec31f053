"""Rows whose targets are those of some documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sani_dist.config import CorpusSettings
from sani_dist.corpus import LEARN, SENSITIVE, PackedRows, prepare

from .conftest import KEY


def test_only_the_chosen_documents_have_targets(tmp_path: Path, jsonl: Any, tokenizer: Any) -> None:
    source = jsonl([f"Note {i}: the patient knows Zyxwort and went home." for i in range(9)])
    settings = CorpusSettings.model_validate(
        {"source": source, "detect": [{"name": "terms", "values": ["Zyxwort"]}], "row_length": 96}
    )
    prepare(settings, tokenizer, tmp_path, KEY)
    whole = PackedRows(tmp_path / "tokens" / "epoch-000" / "repair.arrow")
    everything = whole.batch(range(len(whole)))
    chosen = {1, 2, 8}
    rows = whole.of_documents(chosen)
    assert 0 < len(rows) < len(whole)
    batch = rows.batch(range(len(rows)))
    targets = batch.role != 0
    assert set(batch.document[targets].tolist()) == chosen
    for document in chosen:
        for role in (LEARN, SENSITIVE):
            there, here = (((b.role == role) & (b.document == document)).sum() for b in (everything, batch))
            assert there == here > 0
    assert rows.learnable.tolist() == (batch.role == LEARN).sum(dim=1).tolist()
    assert rows.sensitive.tolist() == (batch.role == SENSITIVE).sum(dim=1).tolist()
    assert rows.batch([1]).input_ids.tolist() == batch.input_ids[1:2].tolist()
    assert len(whole.batch(range(len(whole))).role) == len(whole)  # as it was
    assert len(whole.of_documents([])) == 0
