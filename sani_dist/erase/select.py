"""Choosing the neurons to reset: at random, as the paper does, or by how much the memory of sensitive tokens flows through them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from sani_dist.config import EraseSettings
from sani_dist.corpus.rows import LEARN, SENSITIVE, PackedRows, empty_batch, targets
from sani_dist.engine import distributed
from sani_dist.engine.rounds import rounds
from sani_dist.engine.zero3 import Engine
from sani_dist.erase.plan import Plan, Unit
from sani_dist.erase.structure import Mlp, last_mlps
from sani_dist.kernels import masked_cross_entropy

Report = Callable[[int, int], None]

# What is ordinary needs no more text than what is sensitive: the sums are over thousands of tokens either way.
ORDINARY_ROWS = 16


def select(
    engine: Engine,
    sensitive: PackedRows,
    ordinary: PackedRows,
    settings: EraseSettings,
    *,
    source_sha256: str,
    micro_rows: int = 1,
    report: Report = lambda done, total: None,
) -> Plan:
    """The plan of a run. All ranks call it and get the same plan, at every world size.

    `sensitive`: rows whose sensitive tokens are the memory to be erased. `ordinary`: rows whose learnable tokens must not suffer,
    general text where the user gave some. Both are read only for `select: attribution`.
    """
    mlps = last_mlps(engine.model, settings.layers) if settings.layers else []
    if not mlps:
        return Plan(source_sha256, settings.seed, settings.select, settings.reset, ())
    if settings.select == "random":
        drawn = tuple(Unit(m.layer, "mlp", _random_ids(m, settings)) for m in mlps)
        return Plan(source_sha256, settings.seed, settings.select, settings.reset, drawn)
    compared = min(len(ordinary), max(len(sensitive), ORDINARY_ROWS))
    total = len(sensitive) + compared
    memory = attribution(
        engine, sensitive, len(sensitive), SENSITIVE, mlps, micro_rows, lambda done: report(done, total)
    )
    usual = attribution(
        engine, ordinary, compared, LEARN, mlps, micro_rows, lambda done: report(len(sensitive) + done, total)
    )
    relative = _normalised(memory) / _normalised(usual).clamp(min=1e-12)
    units, summary = [], []
    for mlp, score in zip(mlps, relative, strict=True):
        ids = _top_ids(score, _count(mlp, settings))
        units.append(Unit(mlp.layer, "mlp", ids))
        summary.append(_summary(mlp, score, ids))
    return Plan(source_sha256, settings.seed, settings.select, settings.reset, tuple(units), tuple(summary))


def attribution(
    engine: Engine,
    rows: PackedRows,
    count: int,
    role: int,
    mlps: list[Mlp],
    micro_rows: int,
    report: Callable[[int], None],
) -> torch.Tensor:
    """Sum over the tokens of the first `count` rows of |activation x d loss / d activation|: float64 [layers, neurons].

    The loss is -log p summed over the tokens of `role`. One micro-batch is scored in the same way on whichever rank it falls, and
    the sums are added in row order in float64, so the result does not depend on the world size.
    """
    total = torch.zeros(len(mlps), mlps[0].neurons, dtype=torch.float64)
    seen: dict[int, torch.Tensor] = {}
    hooks = [m.down.register_forward_pre_hook(partial(_keep_input, seen, m.layer)) for m in mlps]
    try:
        for mine, dealt in rounds(count, micro_rows):
            batch = rows.batch(mine) if mine else empty_batch(micro_rows, rows.row_length)
            index, target, _, _ = targets(batch, roles=(role,))
            loss = engine.forward(batch.input_ids, batch.position, partial(_summed_loss, index, target))
            activations = [seen[m.layer] for m in mlps]
            gradients = torch.autograd.grad(loss, activations)
            scores = torch.stack([_flow(a, g) for a, g in zip(activations, gradients, strict=True)])
            seen.clear()
            for part, items in zip(distributed.gather_in_rank_order(scores), dealt, strict=True):
                if items:
                    total += part.cpu()
            report(dealt[-1].stop)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _flow(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Sum over all tokens of |activation x gradient|: float64 [neurons]."""
    return (activation.detach().float() * gradient.float()).abs().flatten(0, -2).double().sum(dim=0)


def _keep_input(
    seen: dict[int, torch.Tensor], layer: int, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
) -> None:
    seen[layer] = inputs[0]


def _summed_loss(index: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:  # fmt: skip # noqa: E501
    # Detached: the head's own gradient is not asked for, and it is the largest matrix product of the step.
    detached = None if bias is None else bias.detach()
    return masked_cross_entropy(
        hidden, weight.detach(), target.to(hidden.device), index.to(hidden.device), bias=detached
    )


def _random_ids(mlp: Mlp, settings: EraseSettings) -> tuple[int, ...]:
    order = np.random.Generator(np.random.Philox(key=[settings.seed, mlp.layer])).permutation(mlp.neurons)
    return tuple(sorted(order[: _count(mlp, settings)].tolist()))


def _count(mlp: Mlp, settings: EraseSettings) -> int:
    return max(1, round(settings.fraction * mlp.neurons))


def _normalised(scores: torch.Tensor) -> torch.Tensor:
    """Shares of each layer's sum: layers differ in scale by orders of magnitude."""
    return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-300)


def _top_ids(score: torch.Tensor, count: int) -> tuple[int, ...]:
    """The `count` highest scores; equal scores in the order of their ids (the sort is stable)."""
    order = torch.sort(score, descending=True, stable=True).indices
    return tuple(sorted(order[:count].tolist()))


def _summary(mlp: Mlp, score: torch.Tensor, ids: tuple[int, ...]) -> dict[str, float]:
    chosen = score[list(ids)]
    return {
        "layer": mlp.layer,
        "median": float(score.median()),
        "lowest_chosen": float(chosen.min()),
        "highest": float(score.max()),
    }
