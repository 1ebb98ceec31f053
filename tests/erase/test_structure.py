"""Where neurons are: names, axes and deviations written down by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.erase.structure import Slice, find_mlps, last_mlps
from sani_dist.errors import InputError


def test_llama(llama_folder: Path) -> None:
    model = build_empty(read_model_config(llama_folder), torch.float32)
    (last,) = last_mlps(model, 1)
    assert (last.layer, last.neurons) == (2, 41)
    assert last.slices == (
        Slice("model.layers.2.mlp.gate_proj.weight", (41, 27), 0, 0.2),
        Slice("model.layers.2.mlp.up_proj.weight", (41, 27), 0, 0.2),
        Slice("model.layers.2.mlp.down_proj.weight", (27, 41), 1, 0.2),
    )
    assert last.down is model.model.layers[2].mlp.down_proj


def test_gpt2(gpt2_folder: Path) -> None:
    model = build_empty(read_model_config(gpt2_folder), torch.float32)
    (last,) = last_mlps(model, 1)
    assert (last.layer, last.neurons) == (1, 43)
    assert last.slices == (
        Slice("transformer.h.1.mlp.c_fc.weight", (33, 43), 1, 0.2),
        Slice("transformer.h.1.mlp.c_fc.bias", (43,), 0, 0.0),
        Slice("transformer.h.1.mlp.c_proj.weight", (43, 33), 0, 0.2 / math.sqrt(2 * 2)),
    )


def test_the_last_layers_in_order(llama_folder: Path) -> None:
    model = build_empty(read_model_config(llama_folder), torch.float32)
    assert [mlp.layer for mlp in last_mlps(model, 2)] == [1, 2]
    assert [mlp.layer for mlp in find_mlps(model)] == [0, 1, 2]
    with pytest.raises(InputError, match=r"erase.layers: 4, but the model has 3 layers"):
        last_mlps(model, 4)


def test_another_architecture_is_refused_by_name() -> None:
    config = BertConfig(
        vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, is_decoder=True
    )
    with pytest.raises(InputError, match=r"BertLMHeadModel: no MLP neurons found; looked in each block for"):
        find_mlps(BertLMHeadModel(config))
