"""Scores of English text under a real language model, against its whole logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.harness import peak_memory
from examples.clinic.english import write_general_text
from sani_dist.kernels import token_scores

LENGTH, TEXTS = 256, 4
CHUNK_ROWS = 340


@pytest.fixture(scope="module")
def states(
    smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Last hidden states [tokens, H] in fp32, vocabulary matrix [V, H], next tokens [tokens]."""
    english = tmp_path_factory.mktemp("english") / "english.jsonl"
    write_general_text(english)
    text = " ".join(json.loads(line)["text"] for line in english.read_text(encoding="utf-8").splitlines()[:40])
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(smollm2_folder)(text, return_tensors="pt").input_ids[0, : LENGTH * TEXTS]
    ids = ids.view(TEXTS, LENGTH)
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
    return hidden[:, :-1].reshape(-1, hidden.shape[-1]), model.lm_head.weight.detach(), ids[:, 1:].reshape(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_every_token_are_those_of_the_whole_logits(
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> None:
    hidden, weight, targets = states[0].to(dtype), states[1].to(dtype), states[2]
    index, max_bytes = torch.arange(len(targets)), CHUNK_ROWS * len(weight) * 4
    found = token_scores(hidden, weight, targets, index, top_k=5, moments=True, max_bytes=max_bytes)
    # Rounded to `dtype`, as those that are scored: in 16 bits that can depend on how many rows are multiplied at once.
    logits = torch.cat([part @ weight.t() for part in hidden.split(CHUNK_ROWS)]).double()
    logprobs = logits.log_softmax(dim=1)
    at = logits.gather(1, targets[:, None])
    torch.testing.assert_close(found.logprob.double(), logprobs.gather(1, targets[:, None])[:, 0], rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.logsumexp.double(), logits.logsumexp(dim=1), rtol=1e-6, atol=1e-5)
    assert torch.equal(found.rank, (logits > at).sum(dim=1, dtype=torch.int32))
    order = torch.sort(logits, dim=1, descending=True, stable=True).indices[:, :5]
    assert found.top_ids is not None
    assert torch.equal(found.top_ids, order)
    assert torch.equal(found.is_argmax, order[:, 0] == targets)
    # The model does know English: what is compared is no noise.
    assert found.is_argmax.float().mean() > 0.3
    assert found.logprob.mean() > -5
    mean = (logprobs.exp() * logprobs).sum(dim=1)
    assert found.mean_logprob is not None
    torch.testing.assert_close(found.mean_logprob.double(), mean, rtol=1e-4, atol=1e-4)


def test_memory_does_not_grow_with_the_number_of_tokens(
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    hidden, weight, targets = states
    peaks = []
    for times in (1, 1, 6):  # the first also pays for what is set up once
        x, t = hidden.repeat(times, 1), targets.repeat(times)
        rows = torch.arange(len(t))
        with peak_memory() as peak:
            token_scores(x, weight, t, rows, max_bytes=32 * 2**20)
        peaks.append(peak["anonymous"])
    logits_of_one = len(targets) * weight.shape[0] * 4
    assert peaks[2] - peaks[1] < 0.02 * 5 * logits_of_one
