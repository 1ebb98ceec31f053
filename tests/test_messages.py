"""No message repeats what stood in the data or in a setting: not an error, not its traceback, not what a command prints."""

from __future__ import annotations

import csv
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sani_dist import cli
from sani_dist.config import Config, PresidioDetector
from sani_dist.config_file import config_from_mapping, load_config, read_mapping
from sani_dist.corpus import presidio, review
from sani_dist.corpus.annotations import parse_spans
from sani_dist.corpus.read import read_records
from sani_dist.corpus.review import ReviewTable
from sani_dist.errors import InputError, RunError
from sani_dist.messages import columns, one_line, plain, trace
from sani_dist.run import Run
from sani_dist.terminal import kinds_table

from . import tiny

VALUE = "zebulon quackenbush"
SPELLINGS = ("zebulon", "quackenbush", "qx-77314")


def silent(said: str) -> None:
    assert not any(word in said.lower() for word in SPELLINGS), said


def refusal(act: Callable[[], object]) -> str:
    """What a caller sees of the error: its line, which is one, and the traceback with all its causes."""
    with pytest.raises(InputError) as refused:
        act()
    silent(str(refused.value))
    frames = traceback.format_exception(refused.value)
    silent("".join(line for line in frames if not line.startswith("  File")))
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Inputs


def csv_without_header(folder: Path) -> str:
    (folder / "a.csv").write_text(f"{VALUE},QX-77314\nb,c\n")
    return "a.csv"


def json_keyed_by_names(folder: Path) -> str:
    (folder / "a.jsonl").write_text(json.dumps({VALUE: 1}))
    return "a.jsonl"


def json_that_is_cut(folder: Path) -> str:
    (folder / "a.jsonl").write_text(f'{{"text": "{VALUE}')
    return "a.jsonl"


def json_that_is_no_object(folder: Path) -> str:
    (folder / "a.jsonl").write_text(json.dumps(VALUE))
    return "a.jsonl"


def parquet_with_names_as_columns(folder: Path) -> str:
    pq.write_table(pa.table({VALUE: ["a"]}), folder / "a.parquet")
    return "a.parquet"


def csv_with_a_stray_quote(folder: Path) -> str:
    (folder / "a.csv").write_text(f'text\n"{VALUE}"QX-77314\n')
    return "a.csv"


def text_files_named_after_patients(folder: Path) -> str:
    (folder / "notes").mkdir()
    (folder / "notes" / f"{VALUE}.txt").write_bytes(b"\xff")
    return "notes"


def chat_that_is_no_json(folder: Path) -> str:
    (folder / "a.jsonl").write_text(json.dumps({"text": [{VALUE: 1}]}))
    return "a.jsonl"


@pytest.mark.parametrize(
    "write",
    [
        csv_without_header, json_keyed_by_names, json_that_is_cut, json_that_is_no_object, parquet_with_names_as_columns,
        csv_with_a_stray_quote, text_files_named_after_patients, chat_that_is_no_json,
    ],
)  # fmt: skip
def test_a_corpus_that_is_refused(tmp_path: Path, write: Callable[[Path], str]) -> None:
    source = str(tmp_path / write(tmp_path))
    assert source in refusal(lambda: list(read_records(source, "text")))


@pytest.mark.parametrize("cells", [[VALUE, "1"], ["document", VALUE]])
def test_a_review_table_without_a_header(tmp_path: Path, cells: list[str]) -> None:
    with (tmp_path / "review.csv").open("w", newline="") as file:
        csv.writer(file).writerows([cells, cells])
    refusal(lambda: ReviewTable(tmp_path / "review.csv"))


@pytest.mark.parametrize(
    "raw", [f"[{VALUE}", {VALUE: 1}, [VALUE], [{"start": VALUE}], [{"start": 0, "end": 1, "kind": {VALUE: 1}}]]
)
def test_spans_that_are_refused(raw: Any) -> None:
    refusal(lambda: parse_spans(raw, "text", "file: record 1"))


def test_settings_that_are_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    for damaged in (f"corpus: [{VALUE}", f"a: {VALUE}\n b: {VALUE}: c", f"@{VALUE}", f"{VALUE}", f"- {VALUE}"):
        path.write_text(damaged)
        refusal(lambda: read_mapping(path, "model, corpus"))


def test_a_run_whose_settings_are_damaged(make_config: Callable[..., Config], tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", make_config())
    for damaged in (f"corpus: [{VALUE}", yaml.safe_dump({VALUE: VALUE}), VALUE):
        run.path("config.yaml").write_text(damaged)
        refusal(lambda: Run.open(run.folder))


# Settings


def leaves(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        here = (*before, name)
        yield here
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, here)


@pytest.mark.parametrize(
    "planted", [VALUE, [VALUE], {VALUE: VALUE}, [[VALUE]], [{"name": VALUE}], [{"name": "terms", VALUE: 1}]], ids=str
)
def test_no_setting_is_repeated(make_config: Callable[..., Config], planted: Any) -> None:
    """In the place of each setting, and as a key beside it."""
    from sani_dist.config_file import config_to_mapping

    refused = 0
    for place in leaves(Config):
        for key in (place[-1], VALUE, VALUE.split()[0]):
            mapping = config_to_mapping(make_config())
            section = mapping
            for name in place[:-1]:
                section = section[name] if section.get(name) is not None else section.setdefault(name, {})
                if not isinstance(section, dict):
                    break
            else:
                section[key] = planted
                try:
                    config_from_mapping(mapping)
                except InputError:
                    refused += 1
                    refusal(lambda mapping=mapping: config_from_mapping(mapping))
    assert refused > 150


@pytest.mark.parametrize(
    "override",
    [
        f"{VALUE}=1",
        f"corpus.{VALUE}=1",
        f"corpus.detect=[{VALUE}",
        f"erase.layers={VALUE}",
        VALUE,
        f"model.path.{VALUE}=1",
    ],
)
def test_no_override_is_repeated(tmp_path: Path, override: str) -> None:
    (tmp_path / "run.yaml").write_text(
        "model: {path: m}\ncorpus: {source: a.jsonl, detect: [{name: terms, values: [a]}]}\n"
    )
    refusal(lambda: load_config(tmp_path / "run.yaml", [override]))


@pytest.mark.parametrize(
    "regex", [f"({VALUE}", f"(?P<{VALUE}>a)", f"(?P<a>b)(?P={VALUE.split()[0]})", f"[{VALUE[::-1]}z-a]"]
)
def test_a_regular_expression_that_is_wrong(regex: str) -> None:
    settings = PresidioDetector.model_validate({"name": "presidio", "patterns": [{"kind": "RECORD", "regex": regex}]})
    assert "at character" in refusal(lambda: presidio._compiled(settings.patterns[0]))


# What a terminal shows


@given(st.text())
def test_a_message_is_one_line_that_obeys_nobody(text: str) -> None:
    for error in (InputError(text), RunError(text)):
        assert str(error).isprintable()
        assert str(error).splitlines() in ([], [str(error)])
    assert plain(text).isprintable()


def test_columns_are_named_where_their_names_are_usual() -> None:
    assert columns(["note", "id", VALUE]) == "note, id, 1 other column"
    assert columns([VALUE, "b"]) == "2 unusual columns"
    assert columns([]) == "none"
    assert len(one_line("a" * 10**6)) < 10**4


def test_markup_in_a_kind_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "metric": "leak@100",
        "population": "sensitive",
        "value": 0.5,
        "low": 0.1,
        "high": 0.9,
        "n": 3,
        "group": {"kind": "[/bold] \x1b[31m"},
    }
    cli.console.print(kinds_table({"[/red]": [entry]}))
    printed = capsys.readouterr().out
    assert "[/bold] \\x1b[31m" in printed
    assert "\x1b" not in printed


def test_a_path_with_markup_is_a_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a[/bold]\nerror: forged"
    monkeypatch.setattr(sys, "argv", ["sani-dist", "purge", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert "a[/bold]\\nerror: forged is not a run folder" in printed.err
    assert len(printed.err.splitlines()) == 1


def test_an_error_that_nobody_expected_says_where_and_not_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tiny.CANARY_PEOPLE[0]

    def fail(*_: object) -> None:
        try:
            raise KeyError(words)
        except KeyError as error:
            raise ValueError(words) from error

    monkeypatch.setattr("sani_dist.api.verify", fail)
    monkeypatch.setattr(sys, "argv", ["sani-dist", "verify", str(tmp_path), "--max-greedy", "0.5"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().err
    silent(printed)
    assert ended.value.code == 3
    for said in ("KeyError", "ValueError", "test_messages.py", "in fail", "should not have happened"):
        assert said in printed
    with pytest.raises(ValueError, match=words) as raised:
        fail()
    silent(trace(raised.value))


@pytest.mark.parametrize(
    "cell", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "plain", "O'Neill", ""]
)
def test_a_spreadsheet_runs_no_cell_of_a_review_table(cell: str) -> None:
    quoted = review._quoted(cell)
    assert not quoted.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert review._unquoted(quoted) == cell or cell == "'=1"
