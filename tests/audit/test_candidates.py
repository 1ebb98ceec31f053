"""Branches of one row have the log-probabilities of separate rows, on real transformers models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from sani_dist.audit.candidates import TOKENS_BEFORE, CandidateRows, Question, branching
from sani_dist.audit.scores import TokenScores
from sani_dist.corpus.rows import SENSITIVE
from sani_dist.engine.zero3 import CausalModel
from tests import tiny

QUESTIONS = [
    Question("The patient has ", ("a cough", "QX-77314", "some fever and a blood test", "back pain"), " and is given rest."),
    Question("The river is quiet in winter. A garden ", ("opens early", "was painted green on Monday")),
    Question("MRN ", tuple(f"QX-{n}" for n in range(10000, 10040)), ", seen today"),
    Question("The old town " * 60, ("is quiet", "looks fine"), ""),
    Question("The market ", ("is quiet in winter", "opens early on Monday, looks fine today"), tokens=3),
]  # fmt: skip


def scored(model: PreTrainedModel, rows: CandidateRows) -> TokenScores:
    """As `audit.scores.score` does it, without ranks."""
    engine: Any = SimpleNamespace(module=CausalModel(model), device=torch.device("cpu"), alone=False)
    batch = rows.batch(range(len(rows)))
    with torch.no_grad(), branching(engine, batch):
        logits = engine.module(batch.input_ids, batch.position, lambda hidden, weight, *_: hidden @ weight.t())
    logprobs = logits.view(*batch.input_ids.shape, -1).log_softmax(dim=-1)[:, :-1]
    found = np.full(batch.input_ids.shape, np.nan, dtype=np.float32)
    found[:, 1:] = logprobs.gather(2, batch.input_ids[:, 1:, None])[..., 0].numpy()
    return TokenScores(np.where(batch.role.numpy() == SENSITIVE, found, np.nan), np.zeros(found.shape, bool))


def alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, question: Question, candidate: str, window: int
) -> np.ndarray:
    """Log-probabilities of the tokens with a character of the candidate, in a row of their own with `window` tokens before."""
    start, stop = len(question.before), len(question.before) + len(candidate)
    encoded = tokenizer(question.before + candidate + question.after[:16], return_offsets_mapping=True)
    inside = [i for i, (a, b) in enumerate(encoded.offset_mapping) if a < stop and b > start]
    first, end = inside[0], inside[-1] + 1
    end = end if question.tokens is None else min(end, first + question.tokens)
    ids = torch.tensor([encoded.input_ids[max(0, first - window) : end]])
    with torch.no_grad():
        logprobs = model(ids).logits[0].log_softmax(dim=-1)
    count = end - first
    return logprobs[-count - 1 : -1].gather(1, ids[0, -count:, None])[:, 0].numpy()


@pytest.mark.parametrize("row_length", [96, 128])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_branches_score_as_rows_of_their_own(
    family: str, row_length: int, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = getattr(tiny, family)(len(tiny_tokenizer)).eval()
    rows = CandidateRows(tiny_tokenizer, QUESTIONS, row_length)
    found = rows.logprobs(scored(model, rows))
    assert [len(places) for places in found] == [len(question.candidates) for question in QUESTIONS]
    for question, answers in zip(QUESTIONS[:3] + QUESTIONS[4:], found[:3] + found[4:], strict=True):
        for candidate, answer in zip(question.candidates, answers, strict=True):
            np.testing.assert_allclose(answer, alone(model, tiny_tokenizer, question, candidate, 10**6), atol=2e-5)


def test_of_a_long_text_the_last_tokens_are_given(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny.llama(len(tiny_tokenizer)).eval()
    rows = CandidateRows(tiny_tokenizer, QUESTIONS[3:4], 128)
    (answers,) = rows.logprobs(scored(model, rows))
    for candidate, answer in zip(QUESTIONS[3].candidates, answers, strict=True):
        np.testing.assert_allclose(
            answer, alone(model, tiny_tokenizer, QUESTIONS[3], candidate, TOKENS_BEFORE), atol=2e-5
        )


def test_rows_share_what_stands_before(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    question = Question("The patient has a sore knee and is given an x-ray. MRN ", QUESTIONS[2].candidates)
    rows = CandidateRows(tiny_tokenizer, [question], 128)
    apart = sum(len(tiny_tokenizer(question.before + c).input_ids) for c in question.candidates)
    assert len(rows) * 128 < apart


def test_a_question_that_fits_no_row_has_no_answer(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = CandidateRows(tiny_tokenizer, [Question("The river ", ("is " * 90, "was")), Question("", ("a", "b"))], 64)
    assert rows.places == [[], []]
    assert len(rows) == 0
