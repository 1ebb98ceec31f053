"""Kinds of models that were wrong without a word once, on two ranks: with buffers that are stored, with a head of their own where the
config ties it, and with layers that remember what stands before in a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sani_dist.audit.candidates import CandidateRows
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine.buffers import persistent_buffers

from .. import tiny
from . import plain
from .families_work import NEW_TOKENS, PROMPTS, QUESTION
from .ranks import run_ranks

SIZES: dict[str, Any] = {
    "hidden_size": 28, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 128, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "scalars": ("Gemma4Text", {
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 64, "num_attention_heads": 4, "head_dim": 8,
    }),
    "router": ("MiniMaxM2", {"hidden_size": 24, "intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "own head": ("Llama", {"tie_word_embeddings": False}),
    "recurrent": ("FalconH1", {
        "hidden_size": 24, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 16, "lm_head_multiplier": 0.4,
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds-sources")
    found = {}
    for name, (family, changes) in KINDS.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes, "vocab_size": len(tiny_tokenizer)})
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for buffer in persistent_buffers(model).values():
                buffer.mul_(0.5).add_(torch.randn_like(buffer), alpha=0.3)
        found[name] = tiny.save(model, tiny_tokenizer, folder / name)
    path = found["own head"] / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    return found


@pytest.fixture(scope="module")
def tokens(
    corpus: dict[str, str], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    found = {
        alone: tiny.pack(
            corpus, tiny_tokenizer, tmp_path_factory.mktemp("kinds-tokens"), notes=5, general=5, alone=alone
        )
        for alone in (False, True)
    }
    return {name: found[name == "recurrent"] for name in KINDS}


@pytest.fixture(scope="module")
def carried(
    sources: dict[str, Path], tokens: dict[str, Path], threshold_0: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    given = ({name: str(path) for name, path in paths.items()} for paths in (sources, tokens))
    run_ranks(2, "kinds_work.carry", folder, sources=next(given), tokens=next(given), ds_config=str(threshold_0))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_document_alone(
    kind: str, carried: Path, sources: dict[str, Path], tokens: dict[str, Path]
) -> None:
    rows, scores = PackedRows(tokens[kind] / "repair.arrow"), np.load(carried / kind / "scores.npz")
    np.testing.assert_allclose(scores["before"], plain.logprobs(plain.load(sources[kind]), rows), atol=5e-5)
    np.testing.assert_allclose(
        scores["repaired"], plain.logprobs(plain.load(carried / kind / "model"), rows), atol=5e-5
    )
    assert np.nanmax(np.abs(scores["repaired"] - scores["before"])) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_export_has_the_tensors_of_its_source(kind: str, carried: Path, sources: dict[str, Path]) -> None:
    source, found = (load_file(folder / "model.safetensors") for folder in (sources[kind], carried / kind / "model"))
    assert source.keys() == found.keys()
    kept = {name for name in source if torch.equal(source[name], found[name])}
    assert kept == {name for name in source if name.endswith(("layer_scalar", "e_score_correction_bias"))}


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_and_answers(
    kind: str, carried: Path, sources: dict[str, Path], tokens: dict[str, Path], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, scores = plain.load(sources[kind]), np.load(carried / kind / "scores.npz")
    for prompt, written in zip(PROMPTS, scores["written"], strict=True):
        assert written.tolist() == plain.written(model, prompt, NEW_TOKENS)
    rows = CandidateRows(tiny_tokenizer, [QUESTION], 96, alone=kind == "recurrent")
    for candidate, (row, first, end) in zip(QUESTION.candidates, rows.places[0], strict=True):
        ids = tiny_tokenizer(QUESTION.before + candidate + QUESTION.after)["input_ids"]
        expected = plain.logprobs_within(model, ids, rows.batch([row]).input_ids[0, first:end])
        np.testing.assert_allclose(scores["answers"][row, first:end], expected, atol=5e-5)
