"""Where units are: names, matrices, axes and deviations written down by hand. What each family has: tests/families."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTBigCodeConfig, MambaConfig, PretrainedConfig, PreTrainedModel

from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.erase.structure import Slice, last_units
from sani_dist.errors import InputError


def empty(folder: Path) -> PreTrainedModel:
    return build_empty(read_model_config(folder), torch.float32)


def test_llama(llama_folder: Path) -> None:
    model = empty(llama_folder)
    neurons, heads = last_units(model, 1, "both")
    assert (neurons.layer, neurons.kind, neurons.count) == (2, "mlp", 41)
    assert neurons.slices == (
        Slice("model.layers.2.mlp.gate_proj.weight", (41, 27), (41, 27), 0, 0.2, range(41)),
        Slice("model.layers.2.mlp.up_proj.weight", (41, 27), (41, 27), 0, 0.2, range(41)),
        Slice("model.layers.2.mlp.down_proj.weight", (27, 41), (27, 41), 1, 0.2, range(41)),
    )
    assert neurons.out is model.model.layers[2].mlp.down_proj
    assert (heads.layer, heads.kind, heads.count, heads.width) == (2, "head", 3, 8)
    assert heads.slices == (
        Slice("model.layers.2.self_attn.q_proj.weight", (24, 27), (24, 27), 0, 0.2, range(3), stride=8, size=8),
        Slice("model.layers.2.self_attn.o_proj.weight", (27, 24), (27, 24), 1, 0.2, range(3), stride=8, size=8),
    )
    assert heads.out is model.model.layers[2].self_attn.o_proj


def test_gpt2(gpt2_folder: Path) -> None:
    neurons, heads = last_units(empty(gpt2_folder), 1, "both")
    assert (neurons.layer, neurons.count) == (1, 43)
    assert neurons.slices == (
        Slice("transformer.h.1.mlp.c_fc.weight", (33, 43), (33, 43), 1, 0.2, range(43)),
        Slice("transformer.h.1.mlp.c_fc.bias", (43,), (43, 1), 0, 0.0, range(43)),
        Slice("transformer.h.1.mlp.c_proj.weight", (43, 33), (43, 33), 0, 0.2 / math.sqrt(2 * 2), range(43)),
    )
    queries = Slice("transformer.h.1.attn.c_attn.weight", (33, 99), (33, 99), 1, 0.2, range(3), stride=11, size=11)
    assert heads.slices[0] == queries
    assert [(s.name.rsplit(".", 2)[1], s.first) for s in heads.slices] == [
        ("c_attn", 0), ("c_attn", 0), ("c_attn", 33), ("c_attn", 33), ("c_attn", 66), ("c_attn", 66), ("c_proj", 0),
    ]  # fmt: skip


def test_the_units_of_a_slice_that_holds_a_part_of_them() -> None:
    """As that of one key head of Falcon, or one expert of a mixture."""
    piece = Slice("a", (90, 5), (90, 5), 0, 0.02, range(4, 8), first=30, stride=6, size=3)
    assert piece.places(torch.tensor([0, 3, 4, 6, 8])).tolist() == [30, 31, 32, 42, 43, 44]
    assert piece.places(torch.tensor([3, 8])).tolist() == []


def test_the_last_layers_in_order(llama_folder: Path) -> None:
    model = empty(llama_folder)
    assert [group.layer for group in last_units(model, 2, "mlp")] == [1, 2]
    assert [(group.layer, group.kind) for group in last_units(model, 2, "both")] == [
        (1, "mlp"), (1, "head"), (2, "mlp"), (2, "head"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"erase.layers: 4, but the model has 3 layers"):
        last_units(model, 4, "mlp")


@pytest.mark.parametrize(
    ("config", "units", "match"),
    [
        (
            MambaConfig(hidden_size=12, num_hidden_layers=2, vocab_size=50), "mlp",
            r"MambaForCausalLM: no MLP neurons found in block 1; looked for linear modules outside attention, .* fused experts; "
            r"found mixer.in_proj \[48, 12\], mixer.x_proj .*; docs/families.md says how to add an architecture",
        ),
        (
            GPTBigCodeConfig(n_embd=12, n_layer=2, n_head=3, vocab_size=50), "heads",
            r"GPTBigCodeForCausalLM: no heads found in block 1; looked in modules named attn or attention for projections from 12 into "
            r"3 heads, and one back; .* FUSED_ATTENTION; found attn.c_attn \[20, 12\], attn.c_proj \[12, 12\]; docs/families.md",
        ),
    ],
)  # fmt: skip
def test_an_unknown_architecture_is_refused_in_one_line(config: PretrainedConfig, units: Any, match: str) -> None:
    model = build_empty(config, torch.float32)
    with pytest.raises(InputError, match=f"erase.units: {match}") as error:
        last_units(model, 1, units)
    assert "\n" not in str(error.value)
