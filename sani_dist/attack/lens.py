"""Logit lens: is a value still readable inside, at a layer before the last? Each block's output goes through the final norm and the
output projection as if it were the last (nostalgebraist, 2020). One forward pass gives all layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from sani_dist.attack.context import AttackContext
from sani_dist.attack.result import Result
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.scores import TokenScores, View, score_views
from sani_dist.corpus.rows import SENSITIVE
from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.zero3 import Engine


def lens(context: AttackContext, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result; its measurements are those of every layer, counted from 0, as groups."""
    engine = next(load)
    engine.for_inference()
    of_splits = {split: scores_by_layer(context, engine, split) for split in context.audited}
    measured: list[Measurement] = []
    for layer in range(len(blocks_of(engine.model))):
        scores = {split: layers[layer] for split, layers in of_splits.items()}
        measured += [replace(m, group={"layer": str(layer)}) for m in context.measured(scores)]
    yield Result("lens", "each layer", name, tuple(measured))
    engine.close()


def scores_by_layer(context: AttackContext, engine: Engine, split: str) -> list[TokenScores]:
    """Scores of the sensitive tokens of a split, as each layer would predict them."""
    with block_outputs(engine) as (outputs, norm):
        views: list[View] = [partial(_as_last, outputs, norm, layer) for layer in range(len(blocks_of(engine.model)))]
        return score_views(engine, context.rows[split], context.audit.micro_rows, views, roles=(SENSITIVE,))


@contextmanager
def block_outputs(engine: Engine) -> Iterator[tuple[list[torch.Tensor], list[nn.Module]]]:
    """While it lasts, each forward pass leaves the output of every block [rows, tokens, hidden_size], and the module after the last block
    that makes the final hidden states; no module where the last block does."""
    layers = blocks_of(engine.model)
    outputs: list[torch.Tensor] = []
    norm: list[nn.Module] = []
    after: list[tuple[nn.Module, torch.Tensor]] = []

    def start(module: nn.Module, arguments: Any) -> None:
        outputs.clear()
        after.clear()

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    def follow(module: nn.Module, arguments: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            after.append((module, output))

    def end(module: nn.Module, arguments: Any, output: Any) -> None:
        # The same memory, not the same object: ZeRO-3's hooks hand on aliases.
        norm[:] = [m for m, made in after if made.data_ptr() == output.last_hidden_state.data_ptr()][:1]
        after.clear()

    inside = {id(module) for module in layers.modules()}
    outside = [m for m in engine.module.body.modules() if id(m) not in inside and m is not engine.module.body]
    hooks = [engine.module.body.register_forward_pre_hook(start), engine.module.body.register_forward_hook(end)]
    hooks += [block.register_forward_hook(keep) for block in layers]
    hooks += [module.register_forward_hook(follow) for module in outside]
    try:
        yield outputs, norm
    finally:
        for hook in hooks:
            hook.remove()


def _as_last(outputs: list[torch.Tensor], norm: list[nn.Module], layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states [tokens, hidden_size] of a block, as the output projection expects them."""
    state: torch.Tensor = norm[0](outputs[layer]) if norm else outputs[layer]
    return state.reshape(hidden.shape)
