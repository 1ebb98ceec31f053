"""No sensitive value leaves the parts of a run folder that are made to hold it, and `purge` removes those."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

import sani_dist
from sani_dist.config import Config
from sani_dist.errors import InputError
from sani_dist.purge import purge
from sani_dist.run import SENSITIVE_CONTENT, Run

from . import tiny

# There was no review, no layer was frozen, and no other model was asked.
NOT_THERE = {
    "corpus/review.csv",
    "corpus/review",
    *(f"repair/{name}" for part in ("trunk", "teacher", "reference") for name in (part, f".tmp-{part}")),
}


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file; tables as text, since they are compressed on disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            yield name, pd.read_parquet(path).to_string().encode() if path.suffix == ".parquet" else path.read_bytes()


def leaks(folder: Path, words: list[str]) -> set[str]:
    """Files in whose name or content one of the words occurs, whatever its case."""
    found = set()
    for name, content in contents(folder):
        text = name.encode().lower() + b"\0" + content.lower()
        if any(word.lower().encode() in text for word in words):
            found.add(name)
    return found


def test_only_the_documents_hold_values(finished_run: Run) -> None:
    """Not in logs, metrics, audits, plan, run.json, stage records, span tables or the exported model's files."""
    assert leaks(finished_run.folder, tiny.CANARIES) == {"corpus/documents.parquet"}
    names = {name for name, _ in contents(finished_run.folder)}
    for expected in (
        "logs/rank-0.log",
        "logs/rank-1.log",
        "metrics.jsonl",
        "audit/after.json",
        "erase/plan.json",
        "run.json",
    ):
        assert expected in names


def test_a_run_folder_is_for_its_owner_alone(finished_run: Run) -> None:
    assert stat.S_IMODE(finished_run.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(finished_run.path("key").stat().st_mode) == 0o600


def test_purge_removes_what_holds_values_and_leaves_the_evidence(finished_run: Run, tmp_path: Path) -> None:
    run = Run.open(Path(shutil.copytree(finished_run.folder, tmp_path / "run")))
    kept = {
        "model/model.safetensors",
        "audit/before.json",
        "audit/after.json",
        "erase/plan.json",
        "corpus/summary.json",
    }
    assert set(purge(run.folder)) == set(SENSITIVE_CONTENT) - NOT_THERE
    assert leaks(run.folder, tiny.CANARIES) == set()
    names = {name for name, _ in contents(run.folder)}
    assert kept <= names
    assert not any(name.endswith((".arrow", "/key")) or "checkpoints/" in name for name in names)
    assert sani_dist.api.measurements(run, "after") == sani_dist.api.measurements(finished_run, "after")
    assert purge(run.folder) == []


def test_purge_removes_values_from_the_settings(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """Terms and values to be forgotten may stand in the settings themselves."""
    config = make_config(
        corpus={
            "detect": [{"name": "terms", "values": ["Quackenbush"]}, {"name": "annotations"}],
            "target": {"values": ["QX-77314"], "subjects": ["subject-3"]},
        }
    )
    run = sani_dist.api.prepare(config, tmp_path / "run")
    words = [*tiny.CANARIES, "subject-3"]
    assert leaks(run.folder, words) == {"config.yaml", "corpus/documents.parquet"}
    purge(run.folder)
    assert leaks(run.folder, words) == set()
    assert Run.open(run.folder).config.repair == config.repair


def test_value_hashes_differ_between_runs(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """Unkeyed hashes of record numbers could be guessed."""
    runs = [sani_dist.api.prepare(make_config(), tmp_path / name) for name in ("one", "two")]
    ids = [set(pd.read_parquet(run.path("corpus", "spans.parquet"))["value_id"]) for run in runs]
    assert len(ids[0]) == len(ids[1]) > 5
    assert not ids[0] & ids[1]


def test_an_error_does_not_repeat_the_record(make_config: Callable[..., Config], tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(
        '{"patient": "Zebulon", "text": "Zebulon Quackenbush", "spans": [{"start": 8, "end": 99, "kind": "PERSON"}]}\n'
    )
    run = tmp_path / "run"
    with pytest.raises(InputError) as error:
        sani_dist.sanitize(make_config(corpus={"source": str(path)}), run)
    assert not any(word in str(error.value) for word in tiny.CANARIES)
    assert leaks(run, tiny.CANARIES) <= {"corpus/documents.parquet"}
