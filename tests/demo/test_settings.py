"""The demo's settings: valid, without the labels among the detectors, and able to find what the notes hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

from examples.clinic.notes import write_notes
from examples.clinic.settings import demo_config
from sani_dist.config import Config, PresidioDetector
from sani_dist.corpus.canaries import write_canaries


def test_the_detectors_do_not_see_the_labels(tmp_path: Path) -> None:
    corpus = Config.model_validate(demo_config(tmp_path, seed=1)).corpus
    assert corpus.spans == "spans"
    assert [detector.name for detector in corpus.detect] == ["presidio"]


def test_patterns_alone_find_every_identifier_but_repeated_names_and_mail(tmp_path: Path) -> None:
    (detector,) = Config.model_validate(demo_config(tmp_path, seed=0)).corpus.detect
    assert isinstance(detector, PresidioDetector)
    path = tmp_path / "notes.jsonl"
    write_notes(tmp_path / "plain.jsonl", 80, seed=3)
    write_canaries(str(tmp_path / "plain.jsonl"), path, tmp_path / "unused.jsonl", count=30)
    for line in path.read_text(encoding="utf-8").splitlines():
        note = json.loads(line)
        text, found = note["text"], set()
        for pattern in detector.patterns:
            for match in re.finditer(pattern.regex, text):
                found.add((pattern.kind, match[1] if match.re.groups else match[0]))
        values = {(span["kind"], text[span["start"] : span["end"]]) for span in note["spans"]}
        assert {(kind, value) for kind, value in values - found if kind != "EMAIL_ADDRESS"} == set()
        assert found <= values
