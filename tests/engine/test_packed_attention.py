"""Who sees whom in packed rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine.packed_attention import MASK_WITHOUT_POSITIONS, before_in_document
from sani_dist.engine.zero3 import CausalModel
from sani_dist.errors import InputError

from ..distributed.families import FAMILIES, build

IDS = torch.tensor([[3, 17, 42, 5, 29, 11]])
TWO_DOCUMENTS = torch.tensor([[0, 1, 2, 0, 1, 2]])
ONE_DOCUMENT = torch.tensor([[0, 1, 2, 3, 4, 5]])


def hidden(model: CausalModel, position: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, position, lambda hidden, *_: hidden)


def test_a_token_sees_those_before_it_in_its_document() -> None:
    seen = before_in_document(torch.tensor([[0, 1, 0, 1, 2], [0, 0, 0, 1, 2]]))
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert seen[1].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize("family", ["OPT", "BLOOM", "Falcon, one key head", "Falcon, ALiBi"])
def test_a_model_whose_mask_is_not_made_of_positions_is_refused_unless_it_gets_one(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: PreTrainedModel = build(FAMILIES[family], 50)
    assert model.config.model_type in MASK_WITHOUT_POSITIONS
    monkeypatch.setattr("sani_dist.engine.packed_attention.MASK_WITHOUT_POSITIONS", ())
    refused = CausalModel(model)
    hidden(refused, ONE_DOCUMENT)
    with pytest.raises(InputError, match=rf"model.path: {type(model).__name__} attends across document boundaries"):
        hidden(refused, TWO_DOCUMENTS)


def test_a_model_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalModel(build(FAMILIES["Gemma 2"], 50))
    hidden(model, ONE_DOCUMENT)
    assert not model.attention.checked
    hidden(model, TWO_DOCUMENTS)
    assert model.attention.checked


@pytest.mark.parametrize("family", ["Llama", "OPT", "Falcon, ALiBi"])
def test_blocks_that_are_run_again_for_the_backward_see_the_same(family: str) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = build(FAMILIES[family], 50)
        if checkpointing:
            model.activation_checkpointing_enable()
        packed = CausalModel(model).train()
        switch_off_dropout(model)
        loss: Any = packed(IDS, TWO_DOCUMENTS, lambda hidden, *_: hidden.square().sum())
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for again, kept in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(again, kept)


def switch_off_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
