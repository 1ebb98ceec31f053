"""Canaries: where they are put, and what else the files hold."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sani_dist.cli import app
from sani_dist.corpus.canaries import write_canaries
from sani_dist.corpus.formats import CANARY, is_structured
from sani_dist.errors import InputError

ROWS = [
    {"text": f"Note {i}.", "patient": i, "spans": [{"start": 0, "end": 4, "kind": "WORD"}] if i % 2 else None}
    for i in range(9)
]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def codes(row: dict[str, Any]) -> list[str]:
    return [row["text"][s["start"] : s["end"]] for s in row["spans"] or [] if s["kind"] == CANARY]


def test_codes_are_put_at_the_end_and_nothing_else_changes(source: str, tmp_path: Path) -> None:
    write_canaries(source, tmp_path / "out.jsonl", tmp_path / "control.jsonl", count=4, repeats=2, seed=1)
    out, control = lines(tmp_path / "out.jsonl"), lines(tmp_path / "control.jsonl")
    assert len(out) == len(ROWS)
    put = Counter(code for row in out for code in codes(row))
    assert sorted(put.values()) == [2] * 4
    assert all(len(codes(row)) <= 1 for row in out)
    for row, before in zip(out, ROWS, strict=True):
        assert row["patient"] == before["patient"]
        if not codes(row):
            assert row == before
        else:
            assert row["text"] == f"{before['text']}\nReference code: {codes(row)[0]}."
            assert row["spans"][:-1] == (before["spans"] or [])
    unused = [codes(row)[0] for row in control]
    assert len(set(unused)) == 4
    assert not set(unused) & set(put)
    for code in (*put, *unused):
        assert re.fullmatch(r"\d{3}-\d{3}-\d{3}", code)
        assert is_structured(CANARY, code)


def test_a_seed_names_the_files(source: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_canaries(source, tmp_path / f"{name}.jsonl", tmp_path / f"{name}-control.jsonl", count=3, seed=seed)
    content = {name: (tmp_path / f"{name}.jsonl").read_bytes() for name in "abc"}
    assert content["a"] == content["b"] != content["c"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"count": 10}, r"has 9 documents; 10 canaries in 1 each need 10"),
        ({"text": "body"}, r"record 1 has no text in column `body`"),
        ({"spans": "patient", "count": 1}, r"record 2 has no list of spans in column `patient`"),
    ],
)
def test_what_cannot_be_is_one_line(source: str, tmp_path: Path, change: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        write_canaries(source, tmp_path / "out.jsonl", tmp_path / "control.jsonl", **{"count": 2, **change})
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_overwrites_nothing(source: str, tmp_path: Path) -> None:
    out, control = tmp_path / "out.jsonl", tmp_path / "control.jsonl"
    arguments = ["canaries", source, "--out", str(out), "--control", str(control), "--count", "2"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(lines(control)) == 2
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, InputError)
    assert "exists" in str(again.exception)
