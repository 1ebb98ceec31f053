"""What a model says at a value's tokens with other identities before them, against one plain forward pass for each value."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sani_dist.audit.candidates import visible
from sani_dist.config import CorpusSettings
from sani_dist.corpus import PackedRows, prepare
from sani_dist.corpus.prepare import values_of_the_corpus
from sani_dist.corpus.rows import AIM, targets
from sani_dist.corpus.surrogates import Surrogates
from sani_dist.engine.zero3 import CausalModel
from sani_dist.repair.others import CONTEXTS, Texts, _averaged, _Row
from sani_dist.repair.teacher import likeliest

from .. import tiny

TOP, KEY = 5, b"k" * 32
# Values with surrogates and without, adjacent ones, one at the very beginning, one that stands again.
NOTES = [
    "Zebulon Quackenbush, record QX-77314, lives in Zyxwort. Tell Zebulon Quackenbush.",
    "Patient Ottoline (QX-20965/QX-77314) was in Zyxwort with Ottoline.",
]
PATTERNS = [{"kind": "RECORD_NUMBER", "regex": r"QX-\d{5}"}]


def rows_of(folder: Path, tokenizer: Any, row_length: int) -> tuple[PackedRows, Texts]:
    folder.mkdir()
    source = folder / "notes"
    source.mkdir()
    for number, note in enumerate(NOTES):
        (source / f"{number}.txt").write_text(note)
    names = {"name": "terms", "values": ["Zebulon Quackenbush", "Ottoline"], "kind": "PERSON"}
    others = {"name": "terms", "values": ["QX-77314", "QX-20965"], "kind": "RECORD_NUMBER"}
    settings = CorpusSettings.model_validate(
        {
            "source": str(source),
            "detect": [names, others, {"name": "terms", "values": ["Zyxwort"]}],
            "row_length": row_length,
        }
    )
    prepare(settings, tokenizer, folder, KEY)
    surrogates = Surrogates("en_US", 5, values_of_the_corpus(folder / "corpus", KEY))
    rows = PackedRows(folder / "tokens" / "epoch-000" / "repair.arrow").aimed()
    return rows, Texts(folder / "corpus", tokenizer, surrogates)


def said(
    model: Any, rows: PackedRows, row: int, texts: Texts
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """index and target of each token that is asked about, and its reference."""
    batch = rows.batch([row])
    index, target, _, _ = targets(batch, (AIM,))
    asked, found = _Row(batch, (index + 1).tolist(), texts), []
    module = CausalModel(model)
    for context in range(CONTEXTS):
        question, where = asked.question(context)
        with torch.no_grad(), module.seeing(visible(question.document, question.position)):
            found.append(
                module(
                    question.input_ids, question.position, partial(likeliest, where, target, model.config.vocab_size)
                )
            )
    return index, target, *_averaged(found, target, asked.shared, TOP)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_each_value_is_asked_about_among_others(tmp_path: Path, family: str) -> None:
    tokenizer = tiny.tokenizer()
    model = getattr(tiny, family)(len(tokenizer)).eval()
    rows, texts = rows_of(tmp_path / "run", tokenizer, 128)
    seen = 0
    for row in range(len(rows)):
        batch = rows.batch([row])
        index, target, ids, logprob = said(model, rows, row, texts)
        for number, place in enumerate(index.tolist()):
            document = int(batch.document[0, place])
            (text, spans), token = texts.of([document])[0], place + 1
            first = int((batch.document[0] == document).nonzero()[0])
            offsets = tokenizer(text.text, return_offsets_mapping=True)["offset_mapping"]
            start, end = offsets[token - first]
            span = next(i for i, s in enumerate(spans) if s.start < end and start < s.end)
            own = next(i for i, (_, stop) in enumerate(offsets) if stop > spans[span].start)  # its first token
            mean, shared = torch.zeros(len(tokenizer)), True
            for context in range(CONTEXTS):
                made = texts.surrogates.of(text, spans, -1 - context)
                value = text.text[spans[span].start : spans[span].end]
                other, surrogate = text.text, made[span] or ""
                for s, replaced in reversed(list(zip(spans[:span], made, strict=False))):
                    other = other[: s.start] + (replaced or other[s.start : s.end]) + other[s.end :]
                lead = other[: len(other) - (len(text.text) - min(spans[span].start, offsets[own][0]))]
                before = tokenizer(lead)["input_ids"]
                prefix = [*before, *batch.input_ids[0, first + own : token].tolist()]
                assert tokenizer.decode(before) == lead
                part = slice(max(0, start - spans[span].start), end - spans[span].start)
                shared &= len(surrogate) == len(value) and surrogate[part] == value[part]
                with torch.no_grad():
                    mean += model(input_ids=torch.tensor([prefix])).logits[0, -1].softmax(dim=0) / CONTEXTS
            if not shared:
                mean[target[number]] = 0
                mean /= mean.sum()
            torch.testing.assert_close(logprob[number].exp().float(), mean[ids[number]], rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(mean[ids[number]], mean.topk(TOP).values, rtol=1e-3, atol=1e-5)
            seen += shared
    assert 0 < seen < len(index) * len(rows)


def test_long_surrogates_and_long_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of documents in short rows; a surrogate that would not leave room is not taken. No position is beyond a row's."""
    tokenizer = tiny.tokenizer()
    model = tiny.gpt2(len(tokenizer)).eval()
    long = " The patient has a cough and is given rest and fluids." * 4
    monkeypatch.setattr(
        "tests.repair.test_others.NOTES", [NOTES[0] + long + NOTES[1] + long + " QX-20965 and Ottoline."]
    )
    rows, texts = rows_of(tmp_path / "run", tokenizer, 64)
    assert len(rows) > 3
    for surrogates in (texts.surrogates, _Long()):
        told = Texts(texts.corpus, tokenizer, surrogates)  # type: ignore[arg-type]
        for row in range(len(rows)):
            batch = rows.batch([row])
            index, target, _, _ = targets(batch, (AIM,))
            question, where = _Row(batch, (index + 1).tolist(), told).question(0)
            assert int(question.position.max()) < 64
            # What a token is predicted from is the token before it, or the last of the text before the value.
            after = (where + 1)[where + 1 < question.input_ids.numel()]
            assert question.input_ids.flatten()[after].tolist() == target[: len(after)].tolist()
            _, _, ids, logprob = said(model, rows, row, told)
            assert not (ids == target.unsqueeze(1)).all(dim=1).any()
            assert logprob.isfinite().all()


class _Long:
    def of(self, document: Any, spans: Any, epoch: int) -> list[str | None]:
        return ["very long " * 40] * len(spans)
