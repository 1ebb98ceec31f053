"""The frozen trunk in one process: what it gives, taken in place of running it, changes nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.frozen_layers import FrozenLayers
from sani_dist.engine.zero3 import CausalModel
from sani_dist.errors import InputError
from tests import tiny


def hidden_only(hidden: torch.Tensor, *_: object) -> torch.Tensor:
    return hidden


@pytest.fixture(params=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return getattr(tiny, request.param)(300).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 17), generator=torch.Generator().manual_seed(0))


def test_layers_above_the_trunk_give_the_same_from_its_states(model: PreTrainedModel, ids: torch.Tensor) -> None:
    positions = torch.arange(17).expand(2, -1)
    module, trunk = CausalModel(model), FrozenLayers(model, 1)
    expected = module(ids, positions, hidden_only)
    with trunk.recorded() as found:
        module(ids, positions, hidden_only)
    (states,) = found
    assert states.shape == (2, 17, model.config.hidden_size)
    module.trunk = trunk
    for layer in blocks_of(model)[:-1]:  # none of them may be needed
        for parameter in layer.parameters():
            parameter.data.fill_(torch.nan)
    assert torch.equal(module(states, positions, hidden_only), expected)


def test_layers_run_again_afterwards(model: PreTrainedModel, ids: torch.Tensor) -> None:
    positions = torch.arange(17).expand(2, -1)
    module, trunk = CausalModel(model), FrozenLayers(model, 1)
    expected = module(ids, positions, hidden_only)
    module.trunk = trunk
    with trunk.recorded() as found:
        module(ids, positions, hidden_only)
    module(found[0], positions, hidden_only)
    with pytest.raises(RuntimeError, match="in between"), trunk.recorded():
        raise RuntimeError("in between")
    assert torch.equal(module(ids, positions, hidden_only), expected)


def test_gradients_are_those_of_the_last_layers(model: PreTrainedModel, ids: torch.Tensor) -> None:
    positions = torch.arange(17).expand(2, -1)
    module, trunk = CausalModel(model), FrozenLayers(model, 1)
    names = {
        f"{name}" for name, p in model.named_parameters() if any(p is q for q in blocks_of(model)[-1].parameters())
    }
    module(ids, positions, hidden_only).square().sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if name in names}
    model.zero_grad()
    with torch.no_grad(), trunk.recorded() as found:
        module(ids, positions, hidden_only)
    trunk.freeze(model)
    module.trunk = trunk
    module(found[0], positions, hidden_only).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == names
    for name, gradient in gradients.items():
        assert torch.equal(gradient, expected[name]), name


def test_there_has_to_be_a_trunk(model: PreTrainedModel) -> None:
    layers = len(blocks_of(model))
    with pytest.raises(InputError, match=rf"repair.trainable: last {layers}, but the model has {layers} layers"):
        FrozenLayers(model, layers)
