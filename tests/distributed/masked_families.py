"""Masked language models, in the way of `families`, and a tokenizer as they have it."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from numpy import s_
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from .. import tiny
from .families import Family, _prefixed

# hidden 24, 4 heads of 6, 37 neurons, 2 layers.
_SIZES = {
    "hidden_size": 24, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 130,
    "initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
_MLP = {
    "intermediate.dense.weight": (s_[[1, 5]],),
    "intermediate.dense.bias": (s_[[1, 5]],),
    "output.dense.weight": (s_[:, [1, 5]],),
    "attention.output.dense.weight": (s_[:, 6:12],),
}
_SILENCE = {"output.dense": [1, 5], "attention.output.dense": range(6, 12)}
_BERT = {
    **_MLP,
    **{
        f"attention.self.{name}.{part}": (s_[6:12],)
        for name in ("query", "key", "value")
        for part in ("weight", "bias")
    },
}
_DEBERTA = {
    name.replace("query", "query_proj").replace("key", "key_proj").replace("value", "value_proj"): at
    for name, at in _BERT.items()
}

# RoBERTa counts positions from its padding id on, which is small where people train it.
MASKED_FAMILIES: dict[str, Family] = {
    "BERT": Family(
        lambda: transformers.BertConfig(**_SIZES), (1, 5), (1,), _prefixed("bert.encoder.layer.1", _BERT), _SILENCE, (37, 4)
    ),
    "RoBERTa": Family(
        lambda: transformers.RobertaConfig(**{**_SIZES, "max_position_embeddings": 560}), (1, 5), (1,),
        _prefixed("roberta.encoder.layer.1", _BERT), _SILENCE, (37, 4),
    ),
    "ModernBERT": Family(
        lambda: transformers.ModernBertConfig(
            hidden_size=24, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=130,
            initializer_range=0.2, local_attention=16, global_attn_every_n_layers=2,
        ), (1, 5), (1,),
        _prefixed("model.layers.1", {
            "mlp.Wi.weight": (s_[[1, 5]], s_[[38, 42]]),
            "mlp.Wo.weight": (s_[:, [1, 5]],),
            "attn.Wqkv.weight": (s_[6:12], s_[30:36], s_[54:60]),
            "attn.Wo.weight": (s_[:, 6:12],),
        }),
        {"mlp.Wo": [1, 5], "attn.Wo": range(6, 12)}, (37, 4),
    ),
    "DeBERTa 2, 3": Family(
        lambda: transformers.DebertaV2Config(
            **_SIZES, relative_attention=True, position_buckets=16, norm_rel_ebd="layer_norm", share_att_key=True,
            pos_att_type=["p2c", "c2p"], position_biased_input=False,
        ), (1, 5), (1,),
        _prefixed("deberta.encoder.layer.1", _DEBERTA), _SILENCE, (37, 4),
    ),
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """With a start, an end, padding and a mask."""
    made: Any = tiny.tokenizer()
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    made.add_special_tokens(names)
    ends = [(token, made.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    made.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=made.backend_tokenizer, eos_token="<|end|>", **names)


def build_masked(family: Family, tokens: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    config = family.config()
    config.vocab_size, config.pad_token_id = len(tokens), tokens.pad_token_id
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()
