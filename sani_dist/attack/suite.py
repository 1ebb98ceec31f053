"""The attacks of a run in order, on the model and, if there is one, on the gold model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from sani_dist.attack.context import AttackContext
from sani_dist.attack.drift import drift
from sani_dist.attack.lens import lens
from sani_dist.attack.probe import probe
from sani_dist.attack.prompts import prompts
from sani_dist.attack.quantise import quantise
from sani_dist.attack.relearn import relearn
from sani_dist.attack.result import Result
from sani_dist.attack.statement import statement
from sani_dist.engine.source import Source
from sani_dist.engine.zero3 import Engine

# An attack takes untouched engines of the model, as many as it needs, and closes them.
Attack = Callable[[AttackContext, str, Iterator[Engine]], Iterator[Result]]
Task = tuple[str, str]  # names of a model and of an attack
ATTACKS: dict[str, Attack] = {
    "prompts": prompts, "statement": statement, "lens": lens, "probe": probe, "quantise": quantise, "drift": drift, "relearn": relearn,
}  # fmt: skip


def attack(
    context: AttackContext,
    models: Mapping[str, Source],
    known: Sequence[Result] = (),
    under_way: Task | None = None,
    save: Callable[[Sequence[Result], Task | None], None] = lambda results, under_way: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Every attack of the settings on every model; all ranks call it and get the same results.

    models: by name. known: results of an earlier start, which are not made again; under_way: the attack that it had not finished.
    save: gets all results so far, after each, and whether its attack goes on. report: attacks done, and their number.
    """
    results = list(known)
    done = {(result.model, result.attack) for result in known} - {under_way}
    todo = [(model, name) for model in models for name in ATTACKS if name in context.settings.attacks]
    for number, (model, name) in enumerate(todo):
        report(number, len(todo))
        if (model, name) in done:
            continue
        made = {result.variant for result in results if (result.model, result.attack) == (model, name)}
        for result in ATTACKS[name](replace(context, made=made), model, _engines(context, models[model])):
            if result.variant not in made:
                results.append(result)
                save(results, (model, name))
        save(results, None)
    report(len(todo), len(todo))
    return results


def _engines(context: AttackContext, model: Source) -> Iterator[Engine]:
    while True:
        yield context.load(model)
