"""Seeing the activations of units while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from sani_dist.erase.structure import Units


@dataclass(frozen=True)
class Seen:
    """Activations [..., units x width] of the units from number `first` on; `tokens`: of which tokens, as numbers into the flattened batch
    (None: of each, in order)."""

    first: int
    activations: torch.Tensor
    tokens: torch.Tensor | None = None


@contextmanager
def watched(groups: Sequence[Units]) -> Iterator[list[list[Seen]]]:
    """While it lasts, every forward adds to the list of each group what its units gave."""
    seen: list[list[Seen]] = [[] for _ in groups]
    with ExitStack() as stack:
        for group, found in zip(groups, seen, strict=True):
            if group.experts:
                group.out.forward = partial(_experts, group.out, found)
                stack.callback(delattr, group.out, "forward")
            else:
                hook = group.out.register_forward_pre_hook(partial(_keep_input, found))
                stack.callback(hook.remove)
        yield seen


def _keep_input(found: list[Seen], module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    found.append(Seen(0, inputs[0]))


def _experts(
    module: Any, found: list[Seen], hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The forward of fused experts, one at a time, so that what each makes of its tokens can be seen.

    hidden: [tokens, hidden]. chosen, weights: [tokens, k], the experts of each token and what they count.
    """
    result = torch.zeros_like(hidden)
    experts, _, neurons = module.down_proj.shape
    for expert in range(experts):
        token, place = torch.where(chosen == expert)
        if not len(token):
            continue
        activations = module._apply_gate(linear(hidden[token], module.gate_up_proj[expert]))
        found.append(Seen(expert * neurons, activations, token))
        out = linear(activations, module.down_proj[expert]) * weights[token, place, None]
        result = result.index_add(0, token, out.to(result.dtype))
    return result
