"""The stage as a whole, on real files."""

from __future__ import annotations

import gc
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sani_dist.config import CorpusSettings
from sani_dist.corpus import IGNORE, LEARN, SENSITIVE, PackedRows, detect_spans, prepare, review_table
from sani_dist.errors import InputError

from .conftest import KEY

TERMS = {"name": "terms", "values": ["Zyxwort", "Quendel Blau"]}
ANNOTATIONS = {"name": "annotations"}


def settings(**changes) -> CorpusSettings:
    return CorpusSettings.model_validate({"detect": [TERMS], "row_length": 32, **changes})


def table(run: Path, name: str) -> list[dict]:
    return pq.read_table(run / f"{name}.parquet").to_pylist()


def values(run: Path, name: str = "spans", split: str | None = None) -> list[str]:
    texts = {row["id"]: row for row in table(run, "corpus/documents")}
    return [
        texts[span["document"]]["text"][span["start"] : span["end"]]
        for span in table(run, f"corpus/{name}")
        if split in (None, texts[span["document"]]["split"])
    ]


def labelled(text: str, value: str, kind: str = "PERSON") -> dict:
    start = text.index(value)
    return {"text": text, "spans": [{"start": start, "end": start + len(value), "kind": kind}]}


def test_writes_every_table_and_no_value_into_the_summary(tmp_path, jsonl, tokenizer):
    source = jsonl(["We trust zyxwort here.", "Nothing.", "The QUENDEL\n blau is 😀 zyxwort!"])
    general = jsonl([f"General text number {i}." for i in range(10)], "general")
    done = []
    summary = prepare(
        settings(source=source, general=general), tokenizer, tmp_path, KEY, lambda *step: done.append(step)
    )
    assert summary == json.loads((tmp_path / "corpus/summary.json").read_text())
    assert summary["documents"] == {"repair": 3, "general_train": 8, "general_test": 2}
    assert summary["kinds"]["repair"] == {"TERM": 3}
    assert values(tmp_path) == ["zyxwort", "QUENDEL\n blau", "zyxwort"]
    assert "zyxwort" not in json.dumps(summary).lower()
    assert "quendel" not in json.dumps(summary).lower()
    ids = [span["value_id"] for span in table(tmp_path, "corpus/spans")]
    assert ids[0] == ids[2] != ids[1]
    assert all(len(name) == 16 for name in ids)
    assert done[-1] == (39, 39)
    assert sorted(p.name for p in (tmp_path / "corpus").iterdir()) == [
        "documents.parquet",
        "spans.parquet",
        "summary.json",
    ]


def test_token_spans_decode_to_the_values(tmp_path, jsonl, tokenizer):
    texts = [f"{'word ' * i}and Zyxwort{'.' * (i % 3)} follows {'more ' * (3 * i)}" for i in range(40)]
    prepare(settings(source=jsonl(texts)), tokenizer, tmp_path, KEY)
    rows = PackedRows(tmp_path / "tokens/epoch-000/repair.arrow")
    spans = table(tmp_path, "tokens/epoch-000/token_spans")
    assert len(spans) == 40
    for span in spans:
        batch = rows.batch([span["row"]])
        tokens = batch.input_ids[0, span["first"] : span["end"]]
        assert "Zyxwort" in tokenizer.decode(tokens)
        assert (batch.role[0, span["first"] : span["end"]] == SENSITIVE).all()
        assert batch.document[0, span["first"] - 1] == batch.document[0, span["first"]]


def test_scores_each_token_once_and_counts_match(tmp_path, jsonl, tokenizer):
    texts = ["Zyxwort " + "some words of a long text " * n for n in range(1, 30)]
    summary = prepare(settings(source=jsonl(texts)), tokenizer, tmp_path, KEY)
    rows = PackedRows(tmp_path / "tokens/epoch-000/repair.arrow")
    expected = sum(len(tokenizer(text)["input_ids"]) - 1 for text in texts)
    assert rows.learnable.sum() + rows.sensitive.sum() == expected
    counted = summary["tokens"]["repair"]
    assert (counted["learnable"], counted["sensitive"]) == (rows.learnable.sum(), rows.sensitive.sum())


def test_the_same_input_gives_the_same_files(tmp_path, jsonl, tokenizer):
    source = jsonl([{"text": f"Zyxwort {i} for rare{i}", "who": i % 7} for i in range(400)])
    chosen = settings(source=source, subject="who", detect=[TERMS, {"name": "rare_terms"}])
    digests = []
    for name in ("a", "b"):
        run = tmp_path / name
        prepare(chosen, tokenizer, run, KEY)
        files = [path for path in sorted(run.rglob("*")) if path.is_file()]
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
    assert digests[0] == digests[1]


def test_blacklist_is_closed_over_repair_and_general_text(tmp_path, jsonl, tokenizer):
    source = jsonl([labelled("Ann Doe came.", "Ann Doe"), "later ann\tDOE left", "Joann Doe stays"])
    general = jsonl(["Ann Doe is famous"] + [f"x {i}" for i in range(5)], "general")
    heldout = jsonl(["Ann Doe unseen"], "heldout")
    chosen = settings(source=source, general=general, heldout=heldout, spans="spans", detect=[ANNOTATIONS])
    prepare(chosen, tokenizer, tmp_path, KEY)
    assert values(tmp_path, split="repair") == ["Ann Doe", "ann\tDOE"]
    assert values(tmp_path, split="general_train") == ["Ann Doe"]
    assert values(tmp_path, split="heldout") == []


def test_labels_that_are_not_protected_are_scored_and_audited(tmp_path, jsonl, tokenizer):
    source = jsonl([labelled("We saw Zyxwort there", "Zyxwort"), labelled("We saw Hidden One there", "Hidden One")])
    controls = [labelled("Now Other Two is here", "Other Two"), labelled("Now Zyxwort is here", "Zyxwort")]
    control = jsonl(controls, "control")
    summary = prepare(settings(source=source, control=control, spans="spans"), tokenizer, tmp_path, KEY)
    assert values(tmp_path, split="repair") == ["Zyxwort"]
    assert values(tmp_path, "labelled") == ["Zyxwort", "Hidden One", "Other Two", "Zyxwort"]
    assert summary["score"]["recall"]["PERSON"] == {"labelled": 2, "found": 1, "recall": 0.5}
    assert summary["score"]["precision"]["all"]["precision"] == 1.0
    assert summary["audited"] == {"repair": "labelled", "control": "labelled"}
    spans = table(tmp_path, "tokens/epoch-000/token_spans")
    assert [span["split"] for span in spans] == ["repair", "repair", "control"]
    assert summary["tokens"]["control"]["audited_spans"]["also_trained"] == 1


def test_target_restricts(tmp_path, jsonl, tokenizer):
    records = [
        labelled("Met Ann Doe once", "Ann Doe") | {"who": "a"},
        labelled("Met Bob Roe, Ann Doe", "Bob Roe") | {"who": "b"},
    ]
    source = jsonl(records)
    base = {"source": source, "spans": "spans", "subject": "who"}
    for name, target, detect, expected in (
        ("subject", {"subjects": ["a"]}, [ANNOTATIONS], ["Ann Doe", "Ann Doe"]),
        ("value", {"values": ["bob roe"]}, [ANNOTATIONS], ["Bob Roe"]),
        ("alone", {"values": ["MET"]}, [], ["Met", "Met"]),
    ):
        prepare(settings(**base, target=target, detect=detect), tokenizer, tmp_path / name, KEY)
        assert values(tmp_path / name) == expected


def test_without_a_corpus_general_text_is_repaired(tmp_path, jsonl, tokenizer):
    general = jsonl([f"Page {i} on Zyxwort and more" for i in range(10)], "general")
    summary = prepare(settings(general=general), tokenizer, tmp_path, KEY)
    assert summary["documents"] == {"repair": 8, "general_test": 2}
    assert summary["kinds"]["repair"] == {"TERM": 8}


def test_duplicates_of_general_test_documents_are_not_trained_on(tmp_path, jsonl, tokenizer):
    general = jsonl(["same", "a", "b", "c", "same"], "general")
    summary = prepare(settings(source=jsonl(["Zyxwort"]), general=general), tokenizer, tmp_path, KEY)
    assert summary["documents"] == {"repair": 1, "general_train": 3, "general_test": 1}


def test_review_table_comes_back_as_annotations(tmp_path, jsonl, tokenizer):
    source = jsonl(["We trust Zyxwort here.", "And Missed Name too."])
    detect_spans(settings(source=source), None, tmp_path, KEY)
    path = review_table(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("a", encoding="utf-8") as file:
        file.write("1,4,15,PERSON,,,,\n")
    chosen = settings(source=source, spans=str(path), detect=[ANNOTATIONS])
    prepare(chosen, tokenizer, tmp_path / "second", KEY)
    assert values(tmp_path / "second") == ["Zyxwort", "Missed Name"]
    other = jsonl(["Something else altogether, and long", "And Missed Name too."], "other")
    with pytest.raises(InputError, match=r"record 1 was written for another text than document 0"):
        detect_spans(chosen.model_copy(update={"source": other}), None, tmp_path / "third", KEY)


@pytest.mark.parametrize("split", ["heldout", "control", "general"])
def test_evaluation_documents_must_not_be_trained_on(tmp_path, jsonl, tokenizer, split):
    source = jsonl(["Zyxwort a", "Zyxwort secret"])
    other = jsonl(["1", "2", "3", "4", "Zyxwort secret"], "other")
    message = r"corpus.jsonl: record 2 is also record 5 of (heldout|control|general_test)"
    with pytest.raises(InputError, match=message) as error:
        prepare(settings(source=source, **{split: other}), tokenizer, tmp_path, KEY)
    assert "secret" not in str(error.value)


def test_nothing_sensitive_is_an_error(tmp_path, jsonl, tokenizer):
    with pytest.raises(InputError, match="nothing sensitive was found"):
        prepare(settings(source=jsonl(["plain"])), tokenizer, tmp_path, KEY)


def test_an_unlearnable_first_token_and_padding_have_role_ignore(tmp_path, jsonl, tokenizer):
    prepare(settings(source=jsonl(["Zyxwort"])), tokenizer, tmp_path, KEY)
    batch = PackedRows(tmp_path / "tokens/epoch-000/repair.arrow").batch([0])
    size = len(tokenizer("Zyxwort")["input_ids"])
    assert batch.role[0].tolist() == [IGNORE] + [SENSITIVE] * (size - 1) + [IGNORE] * (32 - size)
    assert LEARN not in batch.role
    assert (batch.document[0, size:] == -1).all()
    assert (batch.position[0, size:] == 0).all()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path, jsonl, tokenizer):
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(500)]
    texts = [f"Zyxwort {' '.join(rng.choice(words, 12))} {i}" for i in range(1000)]

    def peak(count: int) -> int:
        records = ({"text": text, "who": i % 50} for i, text in enumerate(texts * count))
        source = jsonl(records, f"times{count}")
        chosen = settings(source=source, subject="who", detect=[TERMS, {"name": "rare_terms"}])
        gc.collect()  # or the peak depends on when what came before is collected
        tracemalloc.start()
        prepare(chosen, tokenizer, tmp_path / str(count), KEY)
        high = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return high

    peak(1)  # fills the caches of folding
    assert peak(8) <= 1.1 * peak(1)
