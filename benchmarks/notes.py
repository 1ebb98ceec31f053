"""Clinical notes of mixed length and a small real model, for the benchmarks of training and of whole runs.

A document is the demo's notes, joined and cut at line ends to a length drawn from a log-normal distribution: from a line or two up to
four notes. What is sensitive is labelled, so that no detector is timed where training is.
"""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from examples.clinic.identities import MAX_IDENTITIES
from examples.clinic.model import write_base_model
from examples.clinic.notes import write_notes
from sani_dist.config import CorpusSettings
from sani_dist.corpus import PackedRows
from sani_dist.corpus import prepare as prepare_corpus
from sani_dist.corpus.rows import LEARN, NO_DOCUMENT

DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "sani_dist-benchmark-notes"
ROW_LENGTH = 1024
# Of the characters of a document: half are shorter than a note of the demo, one in twenty longer than two and a half.
MEDIAN_CHARACTERS, SIGMA = 900, 0.6
# So that every document fits into a row, whoever cuts rows.
MOST_CHARACTERS = 3200


def prepare(folder: Path, documents: int) -> tuple[Path, Path]:
    """(SmolLM2-135M, rows of `documents` notes packed for it), below `folder`; made unless they are there."""
    model, run = folder / "smollm2-135m", folder / f"notes-{documents}"
    if not (model / "tokenizer.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_base_model(model)
    rows = run / "tokens" / "epoch-000" / "repair.arrow"
    if not (run / "corpus" / "summary.json").exists():
        (run / "corpus").mkdir(parents=True, exist_ok=True)
        write_mixed_notes(run / "notes.jsonl", documents, seed=0)
        settings = CorpusSettings(
            source=str(run / "notes.jsonl"), spans="spans", detect=[{"name": "annotations"}], row_length=ROW_LENGTH
        )  # type: ignore[arg-type]
        prepare_corpus(settings, AutoTokenizer.from_pretrained(model), run, key=b"benchmark")  # type: ignore[no-untyped-call]
    return model, rows


def write_mixed_notes(path: Path, count: int, seed: int) -> None:
    """Write `count` documents, JSONL with `text` and `spans`, as the demo's notes have them."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(itertools.islice(_mixed_notes(seed), count))


def write_megabytes_of_notes(path: Path, megabytes: float, seed: int) -> None:
    """Write such documents until the file has that size."""
    with path.open("w", encoding="utf-8") as file:
        written = 0
        for line in _mixed_notes(seed):
            if written >= megabytes * 1e6:
                break
            written += file.write(line)  # characters: JSON escapes what is not ASCII


def _mixed_notes(seed: int) -> Iterator[str]:
    """Documents without end, one a line."""
    draw = random.Random(seed)
    notes = _notes(seed)
    while True:
        size = min(draw.lognormvariate(0, SIGMA) * MEDIAN_CHARACTERS, MOST_CHARACTERS)
        text, spans = "", list[dict[str, Any]]()
        while len(text) < size:
            note = next(notes)
            spans += [{**s, "start": s["start"] + len(text), "end": s["end"] + len(text)} for s in note["spans"]]
            text += note["text"] + "\n"
        cut = text.find("\n", int(size))
        kept = [span for span in spans if span["end"] <= cut]
        yield json.dumps({"text": text[:cut], "spans": kept}) + "\n"


def _notes(seed: int) -> Iterator[dict[str, Any]]:
    """Notes of the demo without end: when one of its seeds has no more identities, those of the next."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "notes.jsonl"
        for later in itertools.count():
            write_notes(path, MAX_IDENTITIES, 1000 * seed + later)
            yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def documents_of(rows: PackedRows) -> list[dict[str, list[int]]]:
    """The documents in the rows as another trainer wants them: input_ids, and labels of -100 wherever there is nothing to learn."""
    documents = []
    for row in range(len(rows)):
        batch = rows.batch([row])
        for number in sorted(set(batch.document[0].tolist())):
            if number == NO_DOCUMENT:
                continue
            own = batch.document[0] == number
            ids, role = batch.input_ids[0][own], batch.role[0][own]
            labels = ids.where(role == LEARN, ids.new_tensor(-100))
            documents.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return documents
