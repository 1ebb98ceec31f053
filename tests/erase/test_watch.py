"""What is seen of the activations, on plain models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from transformers import PreTrainedModel

from sani_dist.corpus.rows import Batch
from sani_dist.erase.select import _points, flows
from sani_dist.erase.structure import last_units
from sani_dist.erase.watch import watched

from ..distributed.families import FAMILIES, build

IDS = torch.tensor([[3, 17, 42, 5, 29, 11, 40, 2]])


def hidden(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
    return found


def test_experts_compute_the_same_and_show_what_each_makes_of_its_tokens() -> None:
    model = build(FAMILIES["Mixtral"], 50)
    usual = hidden(model)
    (group,) = last_units(model, 1, "mlp")
    with watched([group]) as (found,):
        torch.testing.assert_close(hidden(model), usual, atol=1e-6, rtol=1e-5)
    assert torch.equal(hidden(model), usual)
    assert [part.first for part in found] == [0, 16, 32][: len(found)]
    # Each of 8 tokens goes to 2 experts of 16 neurons.
    assert sum(part.activations.shape[0] for part in found) == 8 * 2
    assert all(part.activations.shape[1] == 16 for part in found)


class Plain:
    """A model as `flows` sees an engine, without processes."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def forward(self, input_ids: torch.Tensor, _: torch.Tensor, compute: Callable[..., torch.Tensor]) -> torch.Tensor:
        return compute(self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state)


# The heads of a mixture turn its router over from one expert to another, which no slope shows.
@pytest.mark.parametrize(("family", "units"), [("GPT-2", "both"), ("Mixtral", "mlp")])
def test_integrated_gradients_add_up_to_what_a_layer_does(family: str, units: Literal["mlp", "both"]) -> None:
    """Completeness (arXiv 1703.01365): over all units of a group, what the loss loses when they are all turned off."""
    engine: Any = Plain(build(FAMILIES[family], 50))
    batch = Batch(IDS, *(torch.zeros_like(IDS),) * 3)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return hidden.square().mean(dim=(0, 1)).log().sum()

    whole = engine.forward(IDS, IDS, loss).detach()
    for group in last_units(engine.model, 1, units):
        with watched([group], scale=0.0), torch.no_grad():
            done = float(whole - engine.forward(IDS, IDS, loss))
        fine, coarse, at_end = (
            sum(float(flow.sum()) for _, _, flow in flows(engine, batch, loss, [group], points))
            for points in (_points(16), _points(5), [(1.0, 1.0)])
        )
        assert fine == pytest.approx(done, rel=1e-3)
        assert coarse == pytest.approx(done, rel=0.03)
        assert at_end != pytest.approx(done, rel=0.05)
    assert torch.equal(engine.forward(IDS, IDS, loss), whole)


def test_attribution_is_the_slope_of_the_loss_when_a_unit_is_turned_up() -> None:
    """Sum of activation x gradient, for neurons and for the values of a head, by a difference quotient in double precision."""
    model = build(FAMILIES["GPT-2"], 50).double()
    groups = last_units(model, 1, "both")
    with watched(groups) as seen:
        loss = hidden(model).square().sum()
    for group, (part,) in zip(groups, seen, strict=True):
        (gradient,) = torch.autograd.grad(loss, [part.activations], retain_graph=True)
        slopes = (part.activations * gradient).flatten(0, -2).sum(0).view(group.count, group.width).sum(1)
        for unit in (0, group.count - 1):
            places = slice(unit * group.width, (unit + 1) * group.width)

            def louder(module: object, inputs: tuple[torch.Tensor], places: slice = places) -> tuple[torch.Tensor]:
                scaled = inputs[0].clone()
                scaled[..., places] *= 1 + 1e-6
                return (scaled,)

            hook = group.out.register_forward_pre_hook(louder)
            with torch.no_grad():
                change = (hidden(model).square().sum() - loss) / 1e-6
            hook.remove()
            torch.testing.assert_close(change, slopes[unit].detach(), rtol=1e-4, atol=1e-4)
