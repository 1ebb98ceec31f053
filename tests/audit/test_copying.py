"""Control documents with some of their values repeated: what is appended, and where the tokens lie that have to be copied."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from sani_dist.audit.copying import MOST_VALUES, CopyingRows, repeated
from sani_dist.audit.spans import Corpus
from sani_dist.config import CorpusSettings
from sani_dist.corpus.prepare import prepare
from sani_dist.corpus.rows import IGNORE, SENSITIVE

FORM = "Name: Ida Holm\nMRN: QX-104; Ward 4\nShe is well.\n"


def spans(text: str, **values: str) -> list[tuple[int, int, str]]:
    """Of the first occurrence of each value, by kind."""
    return sorted((text.index(v), text.index(v) + len(v), kind) for kind, v in values.items())


def test_values_come_again_as_the_document_introduces_them() -> None:
    found, repeats = repeated(FORM, spans(FORM, PERSON="Ida Holm", RECORD="QX-104"), random.Random(0))
    assert found == FORM.rstrip() + "\nName: Ida Holm\nMRN: QX-104;"
    assert [(r.kind, found[r.start : r.stop], found[r.again :].split("\n")[0]) for r in repeats] == [
        ("PERSON", "Ida Holm", "Ida Holm"),
        ("RECORD", "QX-104", "QX-104;"),
    ]


def test_running_text_is_introduced_by_its_last_words() -> None:
    text = "We saw the patient again today in our clinic, whose name is Ida Holm, and she was well."
    found, (repeat,) = repeated(text, spans(text, PERSON="Ida Holm"), random.Random(0))
    assert found == text + " today in our clinic, whose name is Ida Holm,"
    assert found[repeat.again :] == "Ida Holm,"


def test_a_value_at_the_start_of_its_line_is_introduced_by_the_line_before() -> None:
    text = "Patient:\nIda Holm\n"
    assert (
        repeated(text, spans(text, PERSON="Ida Holm"), random.Random(0))[0] == "Patient:\nIda Holm\nPatient:\nIda Holm"
    )


def test_a_value_that_nothing_introduces_is_left_out() -> None:
    text = "Ida Holm has a cough. Her code is 77."
    found, (repeat,) = repeated(text, spans(text, PERSON="Ida Holm", CODE="77"), random.Random(0))
    assert repeat.kind == "CODE"
    assert found == text + " Ida Holm has a cough. Her code is 77."


def test_one_value_of_each_kind_and_not_more_than_the_most() -> None:
    kinds = [f"KIND_{i}" for i in range(MOST_VALUES + 3)]
    text = " ".join(f"{kind.lower()} is {i}{i}{i}," for i, kind in enumerate(kinds))
    places = spans(text, **{kind: f"{i}{i}{i}" for i, kind in enumerate(kinds)})
    twice = sorted([*places, *((start, stop, kinds[0]) for start, stop, _ in places[1:])])
    chosen = {seed: [r.kind for r in repeated(text, twice, random.Random(seed))[1]] for seed in range(20)}
    assert all(len(set(found)) == len(found) == MOST_VALUES for found in chosen.values())
    assert set().union(*chosen.values()) == set(kinds)


@pytest.fixture(scope="module")
def run(
    corpus: dict[str, str], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Corpus:
    settings = CorpusSettings.model_validate(
        {
            "source": corpus["notes"], "control": corpus["control"], "spans": "spans", "detect": [{"name": "annotations"}],
            "row_length": 64,
        }
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("copying")
    prepare(settings, tiny_tokenizer, folder, b"k" * 32)
    return Corpus(folder / "corpus", folder / "tokens" / "epoch-000")


def rows_of(run: Corpus, tokenizer: PreTrainedTokenizerFast, row_length: int = 192, most: int = 200) -> CopyingRows:
    return CopyingRows(run, tokenizer, run.spans(), row_length, most=most, seed=0)


def test_the_tokens_of_the_repeats_are_the_only_targets(run: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = rows_of(run, tiny_tokenizer)
    batch = rows.batch(range(len(rows)))
    texts = dict(run.texts())
    targets = np.zeros(batch.role.shape, bool)
    assert len(rows.spans) > 6
    for document, kind, row, first, end in rows.spans.itertuples(index=False):
        targets[row, first:end] = True
        value = tiny_tokenizer.decode(batch.input_ids[row, first:end]).strip()
        assert (kind == "RECORD_NUMBER") == value.startswith("QX-")
        assert value in texts[document]
        assert (batch.document[row, first:end] == document).all()
        start = int((batch.document[row] == document).nonzero()[0])
        before = tiny_tokenizer.decode(batch.input_ids[row, start:first])
        assert before.startswith(texts[document])
        assert value in before
        assert batch.position[row, start] == 0
    assert (batch.role.numpy()[targets] == SENSITIVE).all()
    assert (batch.role.numpy()[~targets] == IGNORE).all()
    controls = set(run.documents("control"))
    assert set(rows.spans["document"]) <= controls


def test_of_a_document_longer_than_a_row_what_its_end_holds_is_asked(
    run: Corpus, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    whole, short = rows_of(run, tiny_tokenizer), rows_of(run, tiny_tokenizer, row_length=60)
    assert 0 < len(short.spans) < len(whole.spans)
    batch = short.batch(range(len(short)))
    for document, _, row, first, end in short.spans.itertuples(index=False):
        start = int((batch.document[row] == document).nonzero()[0])
        value = tiny_tokenizer.decode(batch.input_ids[row, first:end]).strip()
        assert value in tiny_tokenizer.decode(batch.input_ids[row, start:first])


def test_so_many_documents_are_drawn_and_the_same_each_time(
    run: Corpus, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    few, again = (rows_of(run, tiny_tokenizer, most=2).spans for _ in range(2))
    assert few["document"].nunique() == 2
    assert few.equals(again)


def test_without_control_there_is_nothing_to_ask(run: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    none = run.spans()
    rows = CopyingRows(run, tiny_tokenizer, none[none["split"] == "repair"], 192, most=9, seed=0)
    assert len(rows) == 0
    assert list(rows.spans.columns) == ["document", "kind", "row", "first", "end"]
