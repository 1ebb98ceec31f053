"""What is seen of the activations, on plain models."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

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
