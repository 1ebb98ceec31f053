"""What the rank of `test_accumulation` does: the gradient of a global batch of many micro-batches, in bfloat16."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_local_grad

from sani_dist.config import Objectives, RepairSettings
from sani_dist.corpus.rows import PackedRows, targets
from sani_dist.engine.attention import attend_by_document
from sani_dist.engine.checkpoint import State
from sani_dist.engine.zero3 import CausalModel, Engine, load_sharded, read_ds_config
from sani_dist.repair import train
from sani_dist.repair.schedule import Schedule
from sani_dist.repair.train import _loss

from . import plain


def accumulated(
    folder: Path, *, model: str, ds_config: str, tokens: str, repair: dict[str, Any], steps: list[int]
) -> None:
    """For each number of micro-batches, with gradients added up as our files say and in bfloat16: the error against a sum in float64 of the
    same micro-batches' gradients, relative in 2-norm, and by which share of its length the gradient is too long."""
    rows = PackedRows(Path(tokens) / "repair.arrow")
    found: dict[str, dict[int, list[float]]] = {"ours": {}, "bf16": {}}
    for count in steps:
        settings = RepairSettings.model_validate({**repair, "batch_rows": count})
        exact = _exact(Path(model), settings, rows)
        truth = torch.cat(list(exact.values()))
        for name, of_count in found.items():
            config = read_ds_config(Path(ds_config), torch.bfloat16)
            if name == "bf16":
                config["data_types"]["grad_accum_dtype"] = "bf16"
            engine = Engine(load_sharded(Path(model), config, torch.bfloat16), config)
            engine.for_training(settings)
            assert engine.accumulation == count
            ours = _of_engine(engine, settings, rows)
            engine.close()
            got = torch.cat([ours[parameter] for parameter in exact])
            of_count[count] = [float((got - truth).norm() / truth.norm()), float(got @ truth / (truth @ truth)) - 1]
    (folder / "errors.json").write_text(json.dumps(found))


def _of_engine(engine: Engine, settings: RepairSettings, rows: PackedRows) -> dict[str, torch.Tensor]:
    """Seen before the optimizer takes its step: {parameter: its gradient, flat, in float64}."""
    seen: dict[str, torch.Tensor] = {}
    step = engine.ds.optimizer.step

    def look(*arguments: Any, **options: Any) -> Any:
        for name, parameter in engine.model.named_parameters():
            seen[name] = safe_get_local_grad(parameter)[: parameter.ds_numel].double().clone()  # type: ignore[attr-defined]
        return step(*arguments, **options)

    engine.ds.optimizer.step = look
    train(
        engine,
        [rows] * len(settings.text_of_epochs),
        None,
        settings,
        State(0, "inputs"),
        stop=lambda state: state.step == 1,
    )
    return seen


def _exact(model: Path, settings: RepairSettings, rows: PackedRows) -> dict[str, torch.Tensor]:
    alone = plain.load(model).train()
    for parameter in alone.parameters():  # and not the table of frequencies
        parameter.data = parameter.data.to(torch.bfloat16)
    attend_by_document(alone)
    causal, schedule = CausalModel(alone), Schedule(settings, [rows] * len(settings.text_of_epochs), None)
    places = [row for _, row in schedule.batch(0)[0]]
    count = sum(int(rows.learnable[row]) for row in places)
    total = {name: torch.zeros(p.numel(), dtype=torch.float64) for name, p in alone.named_parameters()}
    for row in places:
        batch = rows.batch([row])
        index, target, role, _ = targets(batch)
        alone.zero_grad()
        loss = causal(batch.input_ids, batch.position, partial(_loss, index, target, role, Objectives(), None, count))
        loss.backward()
        for name, parameter in alone.named_parameters():
            assert parameter.grad is not None
            total[name] += parameter.grad.double().flatten()
    return total
