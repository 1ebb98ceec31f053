"""Stage `attack`: what who has the weights gets out of the exported model, or out of the model of a run that only audits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sani_dist.attack.context import AttackContext
from sani_dist.attack.result import ATTACKED, GOLD, Result
from sani_dist.attack.suite import Task, attack
from sani_dist.corpus import PackedRows
from sani_dist.corpus.span import SPLITS
from sani_dist.engine import distributed
from sani_dist.report.redact import redacted
from sani_dist.run import RELATED, build
from sani_dist.stages.rank import Outputs, Rank, write_json

SCHEMA = 1


def run(rank: Rank) -> Outputs:
    """Every attack of the settings, with what an earlier start left of them."""
    rank.release()
    settings, path, inputs = (
        rank.config.attack,
        rank.run.path("audit", "attacks.json"),
        rank.run.inputs_sha256("attack"),
    )
    exported = rank.source.elsewhere(rank.run.path("model")) if "export" in rank.run.stages else None
    context = AttackContext(
        rank.splits(SPLITS),
        None if settings.related is None else PackedRows(rank.run.path(RELATED)),
        rank.corpus, rank.source.tokenizer, rank.load,
        before=None if exported is None else rank.source,
        settings=settings, audit=rank.config.audit, repair=rank.config.repair,
    )  # fmt: skip
    models = {ATTACKED: exported or rank.source}
    if settings.gold is not None:
        models[GOLD] = rank.source.other(settings.gold)

    def save(results: Sequence[Result], under_way: Task | None) -> None:
        if rank.first:
            document = {
                "schema": SCHEMA,
                "inputs_sha256": inputs,
                "settings": redacted(settings.model_dump(mode="json")),
                "under_way": under_way,
                "results": [asdict(result) for result in results],
            }
            build(path, lambda temporary: write_json(temporary, document))

    known, under_way = distributed.from_rank_0(_left_by_an_earlier_start(path, inputs) if rank.first else ([], None))
    attack(
        context, models, known, under_way, save=save,
        report=lambda done, total: rank.metrics.progress("attack", done, total, "attacks"),
    )  # fmt: skip
    return {path: None}


def _left_by_an_earlier_start(path: Path, inputs: str) -> tuple[list[Result], Task | None]:
    """Results of the same attacks, and which of them was not finished."""
    document = json.loads(path.read_text()) if path.exists() else {}
    if document.get("inputs_sha256") != inputs:
        return [], None
    known = [Result.of(entry) for entry in document["results"]]
    under_way = document.get("under_way")
    return known, (under_way[0], under_way[1]) if under_way else None
