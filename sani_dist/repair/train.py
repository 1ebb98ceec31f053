"""The training loop of repair.

    loss = (sum over learnable tokens of -log p  [+ weight x sum over sensitive tokens of -log(1 - p), down to a floor]
           [+ weight x sum over learnable tokens of KL(model before erasing || model)]
           [+ weight x sum over first occurrences of sensitive values of KL(reference || model)])
           / number of learnable tokens in the global batch

the brackets only for the objectives `unlikelihood` (Welleck et al., arXiv 1908.04319), `kl` and `aim`; whatever the split over ranks and
accumulation steps: DeepSpeed averages over ranks, so each micro-batch's loss is multiplied by their number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from sani_dist.config import Objectives, RepairSettings
from sani_dist.corpus.masking import Masking
from sani_dist.corpus.rows import AIM, LEARN, SENSITIVE, Batch, PackedRows, empty_batch, stacked, targets
from sani_dist.engine import distributed
from sani_dist.engine.checkpoint import State
from sani_dist.engine.deepspeed_internals import local_state
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import Engine
from sani_dist.errors import RunError
from sani_dist.kernels import Teacher, masked_cross_entropy
from sani_dist.repair.row_cache import Place
from sani_dist.repair.schedule import Schedule
from sani_dist.repair.states import States
from sani_dist.repair.teacher import Predictions


@dataclass(frozen=True)
class Progress:
    """What one step reports: of all ranks together, but for the memory, which is that of the rank that reports."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    learnable_tokens: int
    tokens_per_second: float
    learnable_tokens_per_second: float
    ranks: int
    peak_memory_bytes: int


def train(
    engine: Engine,
    texts: Sequence[PackedRows],
    retain: PackedRows | None,
    settings: RepairSettings,
    state: State,
    *,
    states: States | None = None,
    taught: Predictions | None = None,
    masking: Masking | None = None,
    stop: Callable[[State], bool] = lambda state: False,
    save_now: Callable[[], bool] = lambda: False,
    save: Callable[[State], object] = lambda state: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> State:
    """Train from `state.step` to the last step of the schedule; returns the state reached.

    Args:
        engine: wrapped by `for_training`.
        texts: the repair text of each epoch. Empty global batches cannot occur; a rank without rows gets an empty micro-batch and still
            joins. For the objective `aim` its rows, and those of `retain`, are `aimed`.
        retain: general text, or None.
        states: what enters the trained layers for each row, if those below are frozen.
        taught: what other models predict, for the objectives `kl` and `aim`.
        masking: of a masked language model, what is hidden of each row.
        stop: asked on every rank after every step; if it is true on any, all stop after a checkpoint.
        save_now: asked on every rank after every step; if it is true on any, a checkpoint is written.
        save: writes a checkpoint, called every `checkpoint_every` steps, at the end, on stop and on `save_now`.

    Raises:
        RunError: loss, gradient or a weight is not finite. On all ranks, and before a checkpoint: the last one is whole and good.
    """
    schedule, objectives = Schedule(settings, texts, retain), settings.objectives
    roles = _trained_roles(objectives)
    saved = state.step
    while state.step < schedule.steps:
        started = time.perf_counter()
        micro_batches, learnable = _deal(engine, schedule, state.step, texts, retain, settings, masking)
        rate = schedule.learning_rate(state.step)
        for group in engine.ds.optimizer.param_groups:
            group["lr"] = rate
        # On the device: to read each micro-batch's would be to wait for it.
        loss = torch.zeros((), dtype=torch.float64, device=engine.device)
        for number, places in enumerate(micro_batches):
            before = state.step * settings.batch_rows + _first(number, settings.micro_rows)
            batch = _batch(places, settings.micro_rows, texts[0].row_length, masking, before)
            inputs = batch.input_ids if states is None else states.of(places, settings.micro_rows)
            _seed_dropout(settings.seed, state.step, number)
            index, target, role, _ = targets(batch, roles=roles)
            normalizer = max(1, learnable) / distributed.world_size()
            teacher = None
            if taught is not None:
                teacher = taught.of(places, batch.input_ids.shape[1], index, role, objectives.kl)
            compute = partial(_loss, index, target, role, objectives, teacher, normalizer)
            scaled = engine.ds(inputs.to(engine.device), batch.position.to(engine.device), compute)
            loss += scaled.detach().double() / distributed.world_size()
            # Its own division by the steps of accumulation would be rounded to the precision of the model.
            engine.ds.backward(scaled, scale_wrt_gas=False)
            if engine.ds.is_gradient_accumulation_boundary():
                _refuse("the loss", not math.isfinite(float(loss)), state)
            engine.ds.step()
        # DeepSpeed leaves out a step whose gradient is not finite, and says so only here; the norm is that of all ranks.
        norm = float(engine.ds.get_global_grad_norm())
        _refuse("the gradient", not math.isfinite(norm) or norm < 0, state)
        state = replace(state, step=state.step + 1, tokens=state.tokens + learnable)
        own = torch.tensor([float(stop(state)), float(save_now()), float(loss)], dtype=torch.float64)
        stops, saves, total_loss = distributed.sum_over_ranks(own.to(engine.device)).tolist()
        state = replace(state, loss=total_loss)
        seconds = time.perf_counter() - started
        tokens = len(micro_batches) * settings.micro_rows * texts[0].row_length * distributed.world_size()
        report(
            Progress(
                state.step, schedule.steps, total_loss, rate, learnable, tokens / seconds, learnable / seconds,
                distributed.world_size(), distributed.peak_memory_bytes(),
            )
        )  # fmt: skip
        regular = state.step % settings.checkpoint_every == 0 or state.step == schedule.steps
        if regular or stops or saves:
            _refuse("a weight", not _masters_are_finite(engine), state, "after")
            save(state)
            saved = state.step
        if stops:
            break
    assert saved == state.step
    return state


def _trained_roles(objectives: Objectives) -> tuple[int, ...]:
    """Of the tokens that are in the loss."""
    if objectives.aim:
        return LEARN, AIM
    return (LEARN, SENSITIVE) if objectives.plain or objectives.unlikelihood else (LEARN,)


def _seed_dropout(seed: int, step: int, number: int) -> None:
    """Random numbers of a forward pass as a function of the step, as everything else, so that a resumed run draws the same."""
    place = np.random.SeedSequence([seed, step, number, distributed.rank()])
    torch.manual_seed(int(place.generate_state(1, np.uint64)[0]))


def places_of(settings: RepairSettings, texts: Sequence[PackedRows], retain: PackedRows | None) -> list[Place]:
    """Every row that training takes, once, in the order in which it takes them first."""
    schedule = Schedule(settings, texts, retain)
    taken = (place for step in range(schedule.steps) for place in _places(schedule, step, texts, retain))
    return list({(id(text), row): (text, row) for text, row in taken}.values())


def _places(schedule: Schedule, step: int, texts: Sequence[PackedRows], retain: PackedRows | None) -> list[Place]:
    """The global batch of a step."""
    own, retained = schedule.batch(step)
    return [(texts[epoch], i) for epoch, i in own] + [(retain, i) for i in retained if retain is not None]


def _deal(
    engine: Engine, schedule: Schedule, step: int, texts: Sequence[PackedRows], retain: PackedRows | None, settings: RepairSettings,
    masking: Masking | None,
) -> tuple[list[list[Place]], int]:  # fmt: skip
    """This rank's micro-batches of a step, and the number of learnt tokens in the global batch, from row metadata alone."""
    chosen = _places(schedule, step, texts, retain)
    of_rows = [int(rows.learnable[i] + (rows.sensitive[i] if settings.objectives.plain else 0)) for rows, i in chosen]
    learnable = sum(of_rows if masking is None else map(masking.count, of_rows))
    firsts = (_first(number, settings.micro_rows) for number in range(engine.accumulation))
    return [chosen[first : first + settings.micro_rows] for first in firsts], learnable


def _first(number: int, micro_rows: int) -> int:
    """Where this rank's micro-batch `number` begins in the global batch."""
    return (number * distributed.world_size() + distributed.rank()) * micro_rows


def _batch(places: Sequence[Place], rows: int, row_length: int, masking: Masking | None, first: int) -> Batch:
    """Rows of one micro-batch, filled up with empty ones. `first`: number of the first row in the order in which training takes them."""
    parts = [text.batch([row]) for text, row in places]
    if masking is not None:
        parts = [masking.hide(part, first + place) for place, part in enumerate(parts)]
    if len(parts) < rows:
        parts.append(empty_batch(rows - len(parts), row_length))
    return stacked(parts)


def _loss(index: torch.Tensor, target: torch.Tensor, role: torch.Tensor, objectives: Objectives, teacher: Teacher | None, normalizer: float, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> torch.Tensor:  # fmt: skip # noqa: E501
    device = hidden.device
    pushed: dict[str, Any] = {}
    weight_of_role = objectives.unlikelihood or objectives.aim
    if (
        weight_of_role
    ):  # the kernel reads role 2 as "push down", 3 as "draw to the teacher"; without roles every target is learnt
        pushed = {"roles": role.to(device), "floor": objectives.floor}
        if weight_of_role != 1:
            pushed["row_weights"] = torch.where(role == LEARN, 1.0, weight_of_role).to(device)
    return masked_cross_entropy(
        hidden, weight, target.to(device), index.to(device),
        normalizer=normalizer, bias=bias, softcap=softcap, teacher=None if teacher is None else teacher.to(device), **pushed,
    )  # fmt: skip


def _masters_are_finite(engine: Engine) -> bool:
    """Whether this rank's masters are, without their padding. One pass; the checkpoint that follows writes three times as much."""
    parameters = dict(engine.model.named_parameters())
    for live in local_shards(engine.model):
        if not live.shard.numel or not parameters[live.shard.name].requires_grad:
            continue
        master = local_state(parameters[live.shard.name], "master").detach()[: live.shard.numel]
        if not all(math.isfinite(float(end)) for end in master.aminmax()):  # both are NaN if one value is
            return False
    return True


def _refuse(what: str, bad: bool, state: State, when: str = "at") -> None:
    """All ranks raise together if it is bad on any."""
    flag = torch.tensor([float(bad)], device=distributed.device())
    if distributed.sum_over_ranks(flag).item():
        step = state.step + (when == "at")
        raise RunError(
            f"repair: {what} is not finite {when} step {step}; lower repair.learning_rate or use model.dtype=float32, "
            "then start a new run (the last checkpoint is whole)"
        )
