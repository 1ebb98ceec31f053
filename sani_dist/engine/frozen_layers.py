"""The frozen trunk: the layers below those that are trained. It runs alone, or the others run on hidden states that it gave before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.engine.blocks import blocks_of, recompute
from sani_dist.errors import InputError


class FrozenLayers:
    """The layers of `model` below its last `trained` ones, embedding included. `above`: those that are trained."""

    def __init__(self, model: PreTrainedModel, trained: int) -> None:
        layers = list(blocks_of(model))
        if not trained < len(layers):
            raise InputError(
                f"repair.trainable: last {trained}, but the model has {len(layers)} layers; for all of them leave it out"
            )
        self._below, self.above = layers[: len(layers) - trained], layers[len(layers) - trained :]

    def freeze(self, model: PreTrainedModel) -> None:
        """Leave gradients to the trained layers alone: not to the embedding, the last norm or the output projection."""
        trained = [p for layer in self.above for p in layer.parameters() if p.requires_grad]
        model.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)

    @contextmanager
    def recorded(self) -> Iterator[list[torch.Tensor]]:
        """While it lasts, only the trunk runs; a forward appends what enters the first trained layer, [rows, tokens, hidden_size]."""
        found: list[torch.Tensor] = []

        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            if not isinstance(states, torch.Tensor):
                raise InputError(f"repair.trainable: {type(layer).__name__} is not handed hidden states alone")
            found.append(states)

        hook = self.above[0].register_forward_pre_hook(record, with_kwargs=True)
        try:
            with _passing(self.above):
                yield found
        finally:
            hook.remove()

    @contextmanager
    def replaced(self, states: torch.Tensor) -> Iterator[None]:
        """While it lasts, the trunk does not run: `states` enter the first trained layer."""

        def replace(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

        # The first hook of all, so that ZeRO-3's see the states that count.
        hook = self.above[0].register_forward_pre_hook(replace, with_kwargs=True, prepend=True)
        try:
            with _passing(self._below):
                yield
        finally:
            hook.remove()


def recompute_trained(model: PreTrainedModel, trunk: FrozenLayers | None, share: float) -> None:
    """Let this share of the layers that are trained, those above `trunk` or all, run again in backward; 0: none, True: each of them.

    Raises InputError as `recompute` does.
    """
    if share:
        recompute(model, list(blocks_of(model)) if trunk is None else trunk.above, float(share))


@contextmanager
def _passing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """While it lasts, these layers return the hidden states they are given."""
    for layer in layers:
        layer.forward = lambda hidden_states, *_, **__: hidden_states  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own is there again
