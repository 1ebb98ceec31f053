"""One tiny model of each family, from its own config class, and by hand what two neurons and one head of its last block are.

All dimensions of a model differ, so that a transposition cannot fit by chance. Nothing is as an initialiser leaves it: a bias of zero
would hide that it was not erased, and a soft cap far above the logits that it was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from numpy import s_
from transformers import AutoModelForCausalLM, PreTrainedModel

Indices = tuple[Any, ...]


@dataclass(frozen=True)
class Family:
    """`erased`: parameter of the model -> what of it belongs to the chosen units. `stored`: the same for tensors of the checkpoint,
    where they are not the parameters. `silence`: modules of the last block -> which of their input are the units' activations."""

    config: Callable[[], Any]
    neurons: tuple[int, ...]
    heads: tuple[int, ...]
    erased: Mapping[str, Indices]
    silence: Mapping[str, Any]
    count: tuple[int, int]
    stored: Mapping[str, Indices] = field(default_factory=dict)


def build(family: Family, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    config = family.config()
    config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id = vocabulary, 0, 0, None
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def _llama_like(name: str, **changes: Any) -> Callable[[], Any]:
    """hidden 28, 4 heads of 6 over 2 key heads, 37 neurons, 2 layers."""
    sizes = {
        "hidden_size": 28, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 6, "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    return lambda: getattr(transformers, f"{name}Config")(**{**sizes, **changes})


_LLAMA = {
    "model.layers.1.mlp.gate_proj.weight": (s_[[1, 5]],),
    "model.layers.1.mlp.up_proj.weight": (s_[[1, 5]],),
    "model.layers.1.mlp.down_proj.weight": (s_[:, [1, 5]],),
    "model.layers.1.self_attn.q_proj.weight": (s_[6:12],),
    "model.layers.1.self_attn.o_proj.weight": (s_[:, 6:12],),
}
_LLAMA_SILENCE = {"mlp.down_proj": [1, 5], "self_attn.o_proj": range(6, 12)}


def _llama_family(name: str, **changes: Any) -> Family:
    return Family(_llama_like(name, **changes), (1, 5), (1,), _LLAMA, _LLAMA_SILENCE, (37, 4))


def _prefixed(prefix: str, erased: dict[str, Indices]) -> dict[str, Indices]:
    return {f"{prefix}.{name}": indices for name, indices in erased.items()}


# hidden 24, 4 heads of 6, 37 neurons; of head 1 in each.
_DENSE = {
    "mlp.dense_h_to_4h.weight": (s_[[1, 5]],),
    "mlp.dense_4h_to_h.weight": (s_[:, [1, 5]],),
    "self_attention.dense.weight": (s_[:, 6:12],),
}
_DENSE_SILENCE = {"mlp.dense_4h_to_h": [1, 5], "self_attention.dense": range(6, 12)}


def _falcon(**changes: Any) -> Callable[[], Any]:
    sizes = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_hidden_size": 37,
        "initializer_range": 0.2,
    }
    return lambda: transformers.FalconConfig(**sizes, **changes)


FAMILIES: dict[str, Family] = {
    "Llama": _llama_family("Llama"),
    "Mistral": _llama_family("Mistral", sliding_window=24),
    "Qwen2": Family(
        _llama_like("Qwen2", hidden_size=40, head_dim=10), (1, 5), (2,),
        {
            **{name: at for name, at in _LLAMA.items() if "mlp" in name},
            "model.layers.1.self_attn.q_proj.weight": (s_[20:30],),
            "model.layers.1.self_attn.q_proj.bias": (s_[20:30],),
            "model.layers.1.self_attn.o_proj.weight": (s_[:, 20:30],),
        },
        {"mlp.down_proj": [1, 5], "self_attn.o_proj": range(20, 30)}, (37, 4),
    ),
    "Qwen3": _llama_family("Qwen3"),
    "Gemma": _llama_family("Gemma"),
    "Gemma 2": _llama_family("Gemma2", sliding_window=24, final_logit_softcapping=2.0, attn_logit_softcapping=3.0),
    "Gemma 3": _llama_family("Gemma3Text", sliding_window=24),
    "Granite": _llama_family("Granite", hidden_size=24, head_dim=6, logits_scaling=3.0),
    "Cohere": _llama_family("Cohere", hidden_size=24, head_dim=6, logit_scale=0.3),
    "OLMo": _llama_family("Olmo", hidden_size=24, head_dim=6),
    # Queries are normed over all heads, so that no row of theirs belongs to one.
    "OLMo 2": Family(
        _llama_like("Olmo2", hidden_size=24, head_dim=6), (1, 5), (1,),
        {name: at for name, at in _LLAMA.items() if "q_proj" not in name}, _LLAMA_SILENCE, (37, 4),
    ),
    "Phi-3, Phi-4": Family(
        _llama_like("Phi3", hidden_size=24, pad_token_id=0), (1, 5), (1,),
        {
            "model.layers.1.mlp.gate_up_proj.weight": (s_[[1, 5]], s_[[38, 42]]),
            "model.layers.1.mlp.down_proj.weight": (s_[:, [1, 5]],),
            "model.layers.1.self_attn.qkv_proj.weight": (s_[6:12],),
            "model.layers.1.self_attn.o_proj.weight": (s_[:, 6:12],),
        },
        _LLAMA_SILENCE, (37, 4),
    ),
    "GPT-2": Family(
        lambda: transformers.GPT2Config(
            n_embd=33, n_inner=43, n_layer=2, n_head=3, n_positions=128, initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0,
        ), (1, 5), (1,),
        {
            "transformer.h.1.mlp.c_fc.weight": (s_[:, [1, 5]],),
            "transformer.h.1.mlp.c_fc.bias": (s_[[1, 5]],),
            "transformer.h.1.mlp.c_proj.weight": (s_[[1, 5]],),
            "transformer.h.1.attn.c_attn.weight": (s_[:, 11:22], s_[:, 44:55], s_[:, 77:88]),
            "transformer.h.1.attn.c_attn.bias": (s_[11:22], s_[44:55], s_[77:88]),
            "transformer.h.1.attn.c_proj.weight": (s_[11:22],),
        },
        {"mlp.c_proj": [1, 5], "attn.c_proj": range(11, 22)}, (43, 3),
    ),
    "GPT-NeoX, Pythia": Family(
        lambda: transformers.GPTNeoXConfig(
            hidden_size=24, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
            initializer_range=0.2,
        ), (1, 5), (1,),
        _prefixed("gpt_neox.layers.1", {
            "mlp.dense_h_to_4h.weight": (s_[[1, 5]],),
            "mlp.dense_h_to_4h.bias": (s_[[1, 5]],),
            "mlp.dense_4h_to_h.weight": (s_[:, [1, 5]],),
            "attention.query_key_value.weight": (s_[18:36],),
            "attention.query_key_value.bias": (s_[18:36],),
            "attention.dense.weight": (s_[:, 6:12],),
        }),
        {"mlp.dense_4h_to_h": [1, 5], "attention.dense": range(6, 12)}, (37, 4),
    ),
    "OPT": Family(
        lambda: transformers.OPTConfig(
            hidden_size=30, ffn_dim=37, num_hidden_layers=2, num_attention_heads=3, word_embed_proj_dim=14,
            do_layer_norm_before=False, max_position_embeddings=128, init_std=0.2, dropout=0.0,
        ), (1, 5), (1,),
        _prefixed("model.decoder.layers.1", {
            "fc1.weight": (s_[[1, 5]],),
            "fc1.bias": (s_[[1, 5]],),
            "fc2.weight": (s_[:, [1, 5]],),
            "self_attn.q_proj.weight": (s_[10:20],),
            "self_attn.q_proj.bias": (s_[10:20],),
            "self_attn.k_proj.weight": (s_[10:20],),
            "self_attn.k_proj.bias": (s_[10:20],),
            "self_attn.v_proj.weight": (s_[10:20],),
            "self_attn.v_proj.bias": (s_[10:20],),
            "self_attn.out_proj.weight": (s_[:, 10:20],),
        }),
        {"fc2": [1, 5], "self_attn.out_proj": range(10, 20)}, (37, 3),
    ),
    "BLOOM": Family(
        lambda: transformers.BloomConfig(
            hidden_size=24, n_layer=2, n_head=4, initializer_range=0.2, hidden_dropout=0.0, attention_dropout=0.0
        ), (1, 5), (1,),
        _prefixed("transformer.h.1", {
            **_DENSE,
            "mlp.dense_h_to_4h.bias": (s_[[1, 5]],),
            "self_attention.query_key_value.weight": (s_[18:36],),
            "self_attention.query_key_value.bias": (s_[18:36],),
        }),
        _DENSE_SILENCE, (96, 4),
    ),
    "Falcon, one key head": Family(
        _falcon(), (1, 5), (1,),
        _prefixed("transformer.h.1", {**_DENSE, "self_attention.query_key_value.weight": (s_[6:12],)}),
        _DENSE_SILENCE, (37, 4),
    ),
    "Falcon, grouped key heads": Family(
        _falcon(new_decoder_architecture=True, num_kv_heads=2), (1, 5), (2,),
        _prefixed("transformer.h.1", {
            **_DENSE,
            "self_attention.query_key_value.weight": (s_[24:30],),
            "self_attention.dense.weight": (s_[:, 12:18],),
        }),
        {"mlp.dense_4h_to_h": [1, 5], "self_attention.dense": range(12, 18)}, (37, 4),
    ),
    "Falcon, ALiBi": Family(
        _falcon(multi_query=False, parallel_attn=False, alibi=True, bias=True), (1, 5), (1,),
        _prefixed("transformer.h.1", {
            **_DENSE,
            "mlp.dense_h_to_4h.bias": (s_[[1, 5]],),
            "self_attention.query_key_value.weight": (s_[18:36],),
            "self_attention.query_key_value.bias": (s_[18:36],),
        }),
        _DENSE_SILENCE, (37, 4),
    ),
    # Neuron 1 of expert 0 and neuron 2 of expert 1, of 16 each. The grouped products want sizes in multiples of 16 bytes.
    "Mixtral": Family(
        _llama_like("Mixtral", intermediate_size=16, num_local_experts=3, num_experts_per_tok=2), (1, 18), (1,),
        {
            "model.layers.1.mlp.experts.gate_up_proj": (s_[0, [1, 17]], s_[1, [2, 18]]),
            "model.layers.1.mlp.experts.down_proj": (s_[0, :, 1], s_[1, :, 2]),
            **{name: at for name, at in _LLAMA.items() if "self_attn" in name},
        },
        {"self_attn.o_proj": range(6, 12)}, (48, 4),
        {
            "model.layers.1.block_sparse_moe.experts.0.w1.weight": (s_[1],),
            "model.layers.1.block_sparse_moe.experts.0.w3.weight": (s_[1],),
            "model.layers.1.block_sparse_moe.experts.0.w2.weight": (s_[:, 1],),
            "model.layers.1.block_sparse_moe.experts.1.w1.weight": (s_[2],),
            "model.layers.1.block_sparse_moe.experts.1.w3.weight": (s_[2],),
            "model.layers.1.block_sparse_moe.experts.1.w2.weight": (s_[:, 2],),
            **{name: at for name, at in _LLAMA.items() if "self_attn" in name},
        },
    ),
    # Neuron 5 of expert 0 and neuron 3 of expert 4, of 12 each.
    "Qwen3-MoE": Family(
        _llama_like(
            "Qwen3Moe", moe_intermediate_size=12, num_experts=5, num_experts_per_tok=2, mlp_only_layers=[0]
        ), (5, 51), (1,),
        {
            "model.layers.1.mlp.experts.gate_up_proj": (s_[0, [5, 17]], s_[4, [3, 15]]),
            "model.layers.1.mlp.experts.down_proj": (s_[0, :, 5], s_[4, :, 3]),
            **{name: at for name, at in _LLAMA.items() if "self_attn" in name},
        },
        {"self_attn.o_proj": range(6, 12)}, (60, 4),
        {
            "model.layers.1.mlp.experts.0.gate_proj.weight": (s_[5],),
            "model.layers.1.mlp.experts.0.up_proj.weight": (s_[5],),
            "model.layers.1.mlp.experts.0.down_proj.weight": (s_[:, 5],),
            "model.layers.1.mlp.experts.4.gate_proj.weight": (s_[3],),
            "model.layers.1.mlp.experts.4.up_proj.weight": (s_[3],),
            "model.layers.1.mlp.experts.4.down_proj.weight": (s_[:, 3],),
            **{name: at for name, at in _LLAMA.items() if "self_attn" in name},
        },
    ),
}  # fmt: skip
