"""Rotary embeddings that depend on the length of a text see a document, not the row it lies in nor what came before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from sani_dist.engine.rotary import lengths
from sani_dist.engine.zero3 import CausalModel, MaskedModel

SIZES = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip
# Above and below the 8 tokens of training, at it and one beside it.
DOCUMENTS = (5, 21, 8, 13, 9, 1, 7)
# Sums in another order; other frequencies change the states by tenths.
CLOSE = {"rtol": 1e-3, "atol": 5e-4}


def dynamic() -> PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=8, rope_parameters=rope))


def longrope() -> PreTrainedModel:
    rope = {
        "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [4.0, 5.0, 6.0, 7.0],
        "original_max_position_embeddings": 8,
    }  # fmt: skip
    config = Phi3Config(**SIZES, max_position_embeddings=64, original_max_position_embeddings=8, rope_parameters=rope)
    return Phi3ForCausalLM(config)


def states(model: PreTrainedModel, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = CausalModel(model).eval()(ids, position, lambda hidden, *_: hidden)
    return found.view(*ids.shape, -1)


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_a_document_is_the_same_alone_and_beside_others(make: Callable[[], PreTrainedModel]) -> None:
    def fresh() -> PreTrainedModel:
        torch.manual_seed(0)
        return make().eval()

    ids = [torch.randint(1, 50, (1, n)) for n in DOCUMENTS]
    with torch.no_grad():
        alone = [fresh().base_model(one).last_hidden_state for one in ids]  # by transformers, which sees this text only
    packed = fresh()
    for _ in range(2):  # the second time a longer text has gone before
        position = torch.cat([torch.arange(n) for n in DOCUMENTS])[None]
        found = states(packed, torch.cat(ids, 1), position).split(DOCUMENTS, dim=1)
        for n, own, expected in zip(DOCUMENTS, found, alone, strict=True):
            torch.testing.assert_close(own, expected, **CLOSE, msg=lambda text, n=n: f"{n} tokens: {text}")
    # Rows of a micro-batch, filled up with padding.
    rows = torch.zeros((len(ids), 21), dtype=torch.int64)
    position = torch.zeros_like(rows)
    for row, one in enumerate(ids):
        rows[row, : one.shape[1]], position[row, : one.shape[1]] = one, torch.arange(one.shape[1])
    for row, own in enumerate(states(packed, rows, position)):
        torch.testing.assert_close(own[None, : DOCUMENTS[row]], alone[row], **CLOSE)


def test_so_are_rows_of_a_masked_model() -> None:
    rope: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    torch.manual_seed(0)
    config = ModernBertConfig(
        **{name: size for name, size in SIZES.items() if "key_value" not in name},
        max_position_embeddings=8, rope_parameters={"full_attention": rope, "sliding_attention": rope},
    )  # fmt: skip
    model = MaskedModel(ModernBertForMaskedLM(config)).eval()
    ids = torch.randint(1, 50, (2, 20))
    position = torch.arange(20).repeat(2, 1)
    position[1, 6:] = 0
    with torch.no_grad():
        together = model(ids, position, lambda hidden, *_: hidden).view(2, 20, -1)
        short = model(ids[1:], position[1:], lambda hidden, *_: hidden).view(1, 20, -1)
    torch.testing.assert_close(together[1, :6], short[0, :6], **CLOSE)


def test_length_of_the_document_of_each_token() -> None:
    position = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 5, 6], [3, 4, 5, 6, 7, 8, 9, 10, 11]])
    assert lengths(position).tolist() == [[3, 3, 3, 2, 2, 1, 1, 7, 7], [12] * 9]
