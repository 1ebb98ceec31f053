"""Relearning: the attacker fine-tunes the model on related text, every token of it, and asks again for what was forgotten.

| variant | trained on | source |
|---|---|---|
| nothing | - | |
| documents | half of the documents, identifiers included | Deeb & Roger, arXiv 2410.08827 |
| format | documents of the same format about others: `attack.related`, else the held-out ones, else the control | |
| general | general text only | |

All are judged on the other half: subjects are never divided, and values that stand in both halves are not counted. A control that
was trained on is none, and not asked for.

On each text the attacker tries a grid: learning rates x steps of 8 rows, training all weights or a LoRA of rank 16
(`attack.relearn_grid`), and asks again after each number of steps. What counts is the worst point: the one where the leak less that of
the control is largest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sani_dist.attack.context import AttackContext
from sani_dist.attack.halves import half_of_documents, spans_of_the_others
from sani_dist.attack.result import NOTHING, Result
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.scores import score
from sani_dist.config import AttackSettings, Objectives, RepairSettings
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine import distributed
from sani_dist.engine.adapter import lora_layers
from sani_dist.engine.checkpoint import State
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import Engine
from sani_dist.erase import begin_again
from sani_dist.repair import train

BATCH_ROWS, LORA_RANK = 8, 16


@dataclass(frozen=True)
class Grid:
    """What an attacker tries: learning rates, after how many steps they ask, and what they train."""

    rates: tuple[float, ...]
    steps: tuple[int, ...]
    ways: tuple[str, ...]


GRIDS = {
    "reduced": Grid((1e-4, 3e-4), (6, 25), ("weights",)),
    "full": Grid((3e-5, 1e-4, 3e-4, 1e-3), (6, 25, 100, 300), ("weights", "lora")),
}


def grid_of(settings: AttackSettings, gpu: bool) -> Grid:
    """That of the settings, else what the device can do in sensible time."""
    grid = GRIDS[settings.relearn_grid or ("full" if gpu else "reduced")]
    return Grid(
        settings.relearn_rates or grid.rates,
        tuple(sorted(set(settings.relearn_steps or grid.steps))),
        settings.relearn_ways or grid.ways,
    )


def relearn(context: AttackContext, name: str, load: Iterator[Engine]) -> Iterator[Result]:
    """One result for each variant that there is text for."""
    known = half_of_documents(context)
    spans = spans_of_the_others(context, known)
    others = context.related or context.rows.get("heldout") or context.rows.get("control")
    texts = {
        NOTHING: None, "documents": context.rows["repair"].of_documents(known), "format": others,
        "general": context.rows.get("general_train"),
    }  # fmt: skip

    def asked(engine: Engine, text: PackedRows | None) -> tuple[Measurement, ...]:
        splits = [split for split in context.audited if context.rows[split] is not text]
        scores = {split: score(engine, context.rows[split], context.audit.micro_rows) for split in splits}
        return context.measured(scores, spans)

    for variant, text in texts.items():
        if variant in context.made or (variant != NOTHING and (variant not in context.settings.relearn_on or not text)):
            continue
        if text is None:
            engine = next(load)
            engine.for_inference()
            yield Result("relearn", variant, name, asked(engine, None))
            engine.close()
            continue
        found: dict[str, tuple[Measurement, ...]] = {}
        for label, engine in _trained(context, load, text):
            found[label] = asked(engine, text)
        yield Result("relearn", variant, name, _worst_and_curve(found, context.audit.samples))


def _trained(context: AttackContext, load: Iterator[Engine], text: PackedRows) -> Iterator[tuple[str, Engine]]:
    """Each point of the grid, and the model there. One training for each way and rate passes through all numbers of steps."""
    grid = grid_of(context.settings, distributed.device().type == "cuda")
    for way, rate in itertools.product(grid.ways, grid.rates):
        engine = next(load)
        if way == "lora":
            if not lora_layers(engine.model):  # an adapter that is attacked is one
                engine.add_lora(LORA_RANK)
                begin_again(local_shards(engine.model), context.settings.seed)
            engine.freeze_base()
        settings = _settings(context, len(text), rate, grid.steps[-1])
        engine.for_training(settings)
        state = State(0, "")
        for steps in grid.steps:
            engine.module.train()
            texts = [text] * len(settings.text_of_epochs)
            state = train(engine, texts, None, settings, state, stop=partial(_reached, steps))
            engine.module.eval()
            yield f"{'LoRA' if way == 'lora' else 'all weights'}, rate {rate:g}, {steps} steps", engine
        engine.close()


def _reached(steps: int, state: State) -> bool:
    return state.step == steps


def _settings(context: AttackContext, rows: int, rate: float, most_steps: int) -> RepairSettings:
    """Of a training whose first steps do not depend on how many follow."""
    return RepairSettings(
        objectives=Objectives(plain=True), epochs=math.ceil(most_steps * BATCH_ROWS / rows), learning_rate=rate, schedule="constant",
        warmup=0, batch_rows=BATCH_ROWS, micro_rows=context.repair.micro_rows, checkpoint_every=2**31, seed=context.settings.seed,
    )  # fmt: skip


def _worst_and_curve(found: Mapping[str, Sequence[Measurement]], samples: Collection[int]) -> tuple[Measurement, ...]:
    """Of points, what was measured at the worst, and the leak at each (`group`: the point)."""
    metric = "greedy" if not samples else f"leak@{100 if 100 in samples else max(samples)}"
    curve = {point: [m for m in measured if m.metric == metric] for point, measured in found.items()}

    def harm(point: str) -> float:
        values = {m.population: m.value for m in curve[point]}
        leak = values.get("sensitive")
        return -math.inf if leak is None else leak - (values.get("control") or 0.0)

    worst = max(found, key=harm)
    said = f"worst of {len(found)} points: {worst}"
    whole = [replace(m, reason=said) if m.metric == metric and m.value is not None else m for m in found[worst]]
    return (*whole, *(replace(m, group={"point": point}) for point in curve for m in curve[point]))
