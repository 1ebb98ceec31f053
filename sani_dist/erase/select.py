"""Choosing what is reset: at random, as the paper does, or where the memory of sensitive tokens flows through."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from sani_dist.config import EraseSettings
from sani_dist.corpus.rows import LEARN, SENSITIVE, Batch, Rows, targets
from sani_dist.engine.blocks import blocks_of
from sani_dist.engine.map_rows import map_rows
from sani_dist.engine.zero3 import Engine
from sani_dist.erase.plan import Memory, Plan, Unit
from sani_dist.erase.structure import Units, last_units
from sani_dist.erase.watch import Seen, watched
from sani_dist.kernels import masked_cross_entropy

Report = Callable[[int, int], None]

# What is ordinary needs no more text than what is sensitive: the sums are over thousands of tokens either way.
ORDINARY_ROWS = 16
# The random numbers of a block's heads are not those of its neurons.
HEAD_STREAMS = 2**32


def select(
    engine: Engine,
    sensitive: Rows,
    ordinary: Sequence[Rows],
    settings: EraseSettings,
    *,
    source_sha256: str,
    kinds: Sequence[str] = (),
    micro_rows: int = 1,
    report: Report = lambda done, total: None,
) -> Plan:
    """The plan of a run. All ranks call it and get the same plan, at every world size.

    `sensitive`: rows whose sensitive tokens are the memory to be erased. Those of kind `kinds[i]` may have the role SENSITIVE + 1 + i: then
    the plan tells where each kind sat. `ordinary`: texts whose learnable tokens must not suffer, each as important as the others. None
    is read for `select: random` and `everything`.
    """
    plan = partial(Plan, source_sha256, settings.seed, settings.select, settings.reset)
    if settings.begins_at_base:
        return plan(())
    groups = last_units(engine.model, settings.layers, settings.units) if settings.layers else []
    if not groups or settings.select == "random":
        return plan(tuple(Unit(g.layer, g.kind, _random_ids(g, settings)) for g in groups))
    roles = range(SENSITIVE, SENSITIVE + len(kinds) + 1)
    texts: list[tuple[Rows, int, Sequence[int]]] = [(sensitive, len(sensitive), roles)]
    texts += [(rows, min(len(rows), max(len(sensitive), ORDINARY_ROWS)), (LEARN,)) for rows in ordinary]
    found, before, total = [], 0, sum(count for _, count, _ in texts)
    for rows, count, of_text in texts:
        at = partial(_from, report, before, total)
        found.append(attribution(engine, rows, count, of_text, groups, micro_rows, at))
        before += count
    memory, *usual = (_shares(flow.units, groups) for flow in found)
    means = [torch.stack(flows).mean(dim=0) for flows in zip(*usual, strict=True)]
    scores = [of_memory / of_usual.clamp(min=1e-12) for of_memory, of_usual in zip(memory, means, strict=True)]
    chosen = [_highest(score, share(settings.fraction, len(score))) for score in scores]
    units = tuple(Unit(g.layer, g.kind, ids) for g, ids in zip(groups, chosen, strict=True))
    return plan(units, tuple(map(_summary, groups, scores, chosen)), tuple(_memory(found, groups, kinds)))


def share(fraction: float, count: int) -> int:
    """How many of `count` units a fraction is; at least one."""
    return max(1, round(fraction * count))


@dataclass(frozen=True)
class Flow:
    """What flows to the tokens of a text.

    units: float64 [units] for each group. roles: float64 [groups, roles], of it what stands where a token of each role is predicted: what
    goes from there to later tokens is in it, what comes from earlier ones is not. tokens: how many tokens each role has.
    """

    units: list[torch.Tensor]
    roles: torch.Tensor
    tokens: list[int]


def attribution(
    engine: Engine,
    rows: Rows,
    count: int,
    roles: Sequence[int],
    groups: list[Units],
    micro_rows: int,
    report: Callable[[int], None],
) -> Flow:
    """Sum over the tokens of the first `count` rows of |activation x d loss / d activation|.

    The loss is -log p summed over the tokens of `roles`. One micro-batch is scored in the same way on whichever rank it falls, and
    the sums are added in row order in float64, so the result does not depend on the world size.
    """
    sizes = [group.count for group in groups]
    total = torch.zeros(sum(sizes) + len(groups) * len(roles) + len(roles), dtype=torch.float64)

    def compute(batch: Batch) -> torch.Tensor:
        index, target, role, _ = targets(batch, roles=roles)
        loss = partial(summed_loss, index, target)
        scores = torch.zeros(total.shape, dtype=torch.float64, device=engine.device)
        of_units, of_roles, tokens = _parts(scores, sizes, roles)
        # [roles, tokens]: which role is predicted where.
        predicted = torch.zeros((len(roles), batch.input_ids.numel()), dtype=torch.float64)
        predicted[role.long() - roles[0], index] = 1
        predicted = predicted.to(engine.device)
        tokens += predicted.sum(dim=1)
        for number, part, flow in flows(engine, batch, loss, groups):
            of_tokens = flow.abs().flatten(0, -2).double()
            # Over all tokens, and the `width` values of each unit.
            found = of_tokens.sum(dim=0).view(-1, groups[number].width).sum(dim=1)
            of_units[number][part.first : part.first + len(found)] += found
            where = predicted if part.tokens is None else predicted[:, part.tokens]
            of_roles[number] += where @ of_tokens.sum(dim=1)
        return scores

    for _, made in map_rows(engine, rows, micro_rows, compute, count=count, report=report):
        total += made
    of_units, of_roles, tokens = _parts(total, sizes, roles)
    return Flow(list(of_units), of_roles, [int(number) for number in tokens])


def _parts(
    scores: torch.Tensor, sizes: Sequence[int], roles: Sequence[int]
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]:
    """Views of one tensor: units of each group, [groups, roles], [roles]."""
    units, of_roles, tokens = torch.split(scores, [sum(sizes), len(sizes) * len(roles), len(roles)])
    return torch.split(units, list(sizes)), of_roles.view(len(sizes), len(roles)), tokens


def flows(
    engine: Engine, batch: Batch, compute: Callable[..., torch.Tensor], groups: Sequence[Units]
) -> Iterator[tuple[int, Seen, torch.Tensor]]:
    """(number of a group, a part of it, activation x d `compute` / d activation [..., units x width] in fp32) of what is seen."""
    with watched(groups) as seen, graph_from(engine.model, min(group.layer for group in groups)):
        loss = engine.forward(batch.input_ids, batch.position, compute)
        parts = [(number, part) for number, found in enumerate(seen) for part in found]
        slopes = torch.autograd.grad(loss, [part.activations for _, part in parts])
    for (number, part), slope in zip(parts, slopes, strict=True):
        yield number, part, part.activations.detach().float() * slope.float()


@contextmanager
def graph_from(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """While it lasts, a forward pass keeps what backward needs from block `layer` on, and nothing of the blocks below."""
    blocks, hooks = blocks_of(model), []
    if layer:
        # Before all other hooks, so that those of ZeRO-3 see a block as it runs.
        for block, hook in ((blocks[0], _keep_nothing), (blocks[layer], _keep_from_here)):
            hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
        torch.set_grad_enabled(True)


def _keep_nothing(*_: object) -> None:
    torch.set_grad_enabled(False)


def _keep_from_here(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    torch.set_grad_enabled(True)
    # Where weights are frozen, as those of an adapter's base, slopes begin at what enters.
    (args[0] if args else kwargs["hidden_states"]).requires_grad_()


def _from(report: Report, before: int, total: int, done: int) -> None:
    report(before + done, total)


def summed_loss(index: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> torch.Tensor:  # fmt: skip # noqa: E501
    """-log p of the targets, summed; what `Engine.forward` computes in the end."""
    # Detached: the head's own gradient is not asked for, and it is the largest matrix product of the step.
    detached = None if bias is None else bias.detach()
    return masked_cross_entropy(
        hidden, weight.detach(), target.to(hidden.device), index.to(hidden.device), bias=detached, softcap=softcap
    )


def _random_ids(group: Units, settings: EraseSettings) -> tuple[int, ...]:
    stream = group.layer + (HEAD_STREAMS if group.kind == "head" else 0)
    order = np.random.Generator(np.random.Philox(key=[settings.seed, stream])).permutation(group.count)
    return tuple(sorted(order[: share(settings.fraction, group.count)].tolist()))


def _shares(flows: Sequence[torch.Tensor], groups: Sequence[Units]) -> list[torch.Tensor]:
    """Shares of what flows through all units of a kind, so that texts of any length and loss compare, and layers still do."""
    whole = {group.kind: 1e-300 for group in groups}
    for flow, group in zip(flows, groups, strict=True):
        whole[group.kind] += float(flow.sum())
    return [flow / whole[group.kind] for flow, group in zip(flows, groups, strict=True)]


def _highest(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Ids of the `count` highest scores; of equal ones the lowest ids (stable sort)."""
    return tuple(sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist()))


def _summary(group: Units, score: torch.Tensor, ids: tuple[int, ...]) -> dict[str, float]:
    return {
        "layer": group.layer,
        "median": float(score.median()),
        "lowest_chosen": float(score[list(ids)].min()),
        "highest": float(score.max()),
    }


def _memory(found: Sequence[Flow], groups: Sequence[Units], kinds: Sequence[str]) -> Iterator[Memory]:
    """Where the flow to each kind of identifier sat, then where that to ordinary tokens did, the mean over texts."""
    of_memory, *usual = found
    for units in dict.fromkeys(group.kind for group in groups):
        numbers = [number for number, group in enumerate(groups) if group.kind == units]
        layers = tuple(groups[number].layer for number in numbers)

        def shares(flow: Flow, role: int, numbers: Sequence[int] = numbers) -> torch.Tensor:
            of_layers = flow.roles[list(numbers), role]
            return of_layers / of_layers.sum().clamp(min=1e-300)

        for role, kind in enumerate(kinds, start=1):
            if of_memory.tokens[role]:
                yield Memory(units, kind, of_memory.tokens[role], layers, tuple(shares(of_memory, role).tolist()))
        mean = torch.stack([shares(flow, 0) for flow in usual]).mean(dim=0)
        yield Memory(units, None, sum(flow.tokens[0] for flow in usual), layers, tuple(mean.tolist()))
