"""The proof on a twin: it passes what is right, and catches each kind of wrong result when its mend is taken out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from sani_dist.engine import head, proof
from sani_dist.engine.head import Logits, logits_of
from sani_dist.engine.proof import Proof, prove
from sani_dist.engine.twin import twin_of
from sani_dist.engine.zero3 import build_empty
from sani_dist.errors import InputError

SIZES: dict[str, Any] = {
    "vocab_size": 421, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA: dict[str, Any] = {
    "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


def config(name: str, **changes: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**{**SIZES, **changes})


WINDOWS: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
SMALL: dict[str, Any] = {"vocab_size": 421, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


FAMILIES: dict[str, Callable[[], Any]] = {
    "Llama": lambda: config("Llama"),
    "Gemma 4": lambda: config("Gemma4Text", **WINDOWS, hidden_size_per_layer_input=0, num_kv_shared_layers=0),
    "GLM 4.5": lambda: config("Glm4Moe", **EXPERTS, **ROUTED),
    "MiniMax M2": lambda: config("MiniMaxM2", intermediate_size=16, num_local_experts=4, num_experts_per_tok=2),
    "Granite": lambda: config("Granite", logits_scaling=3.0),
    "Cohere": lambda: config("Cohere", logit_scale=0.3),
    "Gemma 2": lambda: config("Gemma2", final_logit_softcapping=2.0),
    "OPT": lambda: transformers.OPTConfig(**SMALL, ffn_dim=40, word_embed_proj_dim=16),
    "Llama 4": lambda: config("Llama4Text", intermediate_size_mlp=40, num_local_experts=2, num_experts_per_tok=1),
}
# What sees all of its row, or nobody could show that it does not.
ALONE: dict[str, Callable[[], Any]] = {
    "Falcon-H1": lambda: config("FalconH1", **MAMBA, lm_head_multiplier=0.4),
    "Mamba": lambda: transformers.MambaConfig(vocab_size=421, hidden_size=32, state_size=8, num_hidden_layers=2),
    "RecurrentGemma": lambda: transformers.RecurrentGemmaConfig(**{**SIZES, "lru_width": 32, "num_hidden_layers": 3}),
    "Qwen3-Next": lambda: config(
        "Qwen3Next", **EXPERTS, **RECURRENT, num_experts=4, shared_expert_intermediate_size=16
    ),
    "LFM2": lambda: config("Lfm2", layer_types=["conv", "full_attention"]),
    "BERT": lambda: transformers.BertConfig(**SMALL, intermediate_size=40, architectures=["BertForMaskedLM"]),
}


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_proofs", {})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_computes_as_transformers_does_is_shown_to(family: str) -> None:
    assert prove(FAMILIES[family]()) == Proof(shown=True, apart=True)


@pytest.mark.parametrize("family", ALONE)
def test_documents_that_see_each_other_are_found(family: str) -> None:
    assert prove(ALONE[family]()) == Proof(shown=True, apart=False)
    assert proof.alone(ALONE[family]())


@pytest.mark.parametrize("family", ["Gemma 4", "GLM 4.5", "MiniMax M2"])
def test_a_buffer_that_is_not_read_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "read_buffers", lambda *_: None)
    with pytest.raises(InputError, match="what is read of its files is not what transformers reads"):
        prove(FAMILIES[family]())


@pytest.mark.parametrize("family", ["Gemma 4", "GLM 4.5"])
def test_a_buffer_that_is_not_exported_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sani_dist.engine.layout.buffer_shards", lambda *_: iter(()))
    with pytest.raises(InputError, match=r"an export would lack model.layers.*(layer_scalar|correction_bias)"):
        prove(FAMILIES[family]())


@pytest.mark.parametrize("family", ["Granite", "Cohere", "Gemma 2", "Falcon-H1"])
def test_a_scale_or_a_cap_that_is_left_out_is_caught(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sani_dist.engine.zero3.logits_of", lambda model: Logits())
    with pytest.raises(InputError, match="the loss that is computed here is not that of its own forward"):
        prove((FAMILIES | ALONE)[family]())


def test_a_mask_that_is_not_made_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sani_dist.engine.packed_attention.MASK_WITHOUT_POSITIONS", ())
    assert not prove(FAMILIES["OPT"]()).apart


def test_without_a_twin_each_document_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "twin_of", lambda *_, **__: None)
    assert prove(FAMILIES["Llama"]()) == Proof(shown=False, apart=False)


@pytest.mark.parametrize("family", ["Llama", "GLM 4.5", "Qwen3-Next"])
def test_a_twin_is_small_however_large_the_model(family: str) -> None:
    large = (FAMILIES | ALONE)[family]()
    large.update(
        {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "head_dim": 128,
            "num_attention_heads": 32,
            "vocab_size": 150_000,
        }
    )
    twin = twin_of(large, AutoModelForCausalLM, use_cache=False)
    assert twin is not None
    assert sum(parameter.numel() for parameter in twin.parameters()) < 2e7


def test_what_stands_between_hidden_states_and_logits() -> None:
    def found(settings: Any) -> Logits:
        return logits_of(build_empty(settings, torch.float32))

    assert found(config("Llama")) == Logits()
    assert found(config("Granite", logits_scaling=4.0)) == Logits(after=0.25)
    assert found(config("Cohere", logit_scale=0.3)) == Logits(after=0.3)
    assert found(config("Gemma2", final_logit_softcapping=30.0)) == Logits(softcap=30.0)
    assert found(ALONE["Falcon-H1"]()) == Logits(after=0.4)


def test_anything_else_between_them_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_empty(config("Llama"), torch.float32)
    plain = model.forward

    def shifted(**given: Any) -> Any:
        output = plain(**given)
        output.logits = output.logits.sin()
        return output

    monkeypatch.setattr(model, "forward", shifted)
    with pytest.raises(InputError, match="LlamaForCausalLM does more than scale and cap"):
        head.logits_of(model)
