"""Stage `erase`: which units are reset. The plan is kept; it is applied to shards wherever the erased model is needed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sani_dist.corpus import PackedRows
from sani_dist.corpus.kinds import KindRows
from sani_dist.corpus.masking import HiddenRows, every_token
from sani_dist.corpus.rows import LEARN, SENSITIVE, Rows
from sani_dist.erase import select
from sani_dist.run import build
from sani_dist.stages.rank import PLAN, Outputs, Rank


def run(rank: Rank) -> Outputs:
    """Choose the units, by attribution with a forward and backward pass over the text."""
    settings, engine = rank.config.erase, rank.original()
    sensitive: Rows = rank.needed_rows("repair")
    ordinary: Sequence[Rows] = ()
    kinds: Sequence[str] = ()
    if settings.layers and settings.select not in ("random", "everything"):
        sensitive, ordinary, kinds = _compared(rank)
        if engine.ds is None:
            engine.for_inference()
    plan = select(
        engine, sensitive, ordinary, settings, source_sha256=rank.source_hashes["model_sha256"], kinds=kinds,
        report=lambda done, total: rank.metrics.progress("erase", done, total, "rows"),
    )  # fmt: skip
    path = rank.run.path(PLAN)
    if rank.first:
        build(path, plan.write)
    return {path: None}


def _compared(rank: Rank) -> tuple[Rows, Sequence[Rows], Sequence[str]]:
    """What units are scored by: the sensitive text, the texts whose tokens must not suffer, and the kinds of the former."""
    repair, general = rank.needed_rows("repair"), rank.rows("general_train")
    texts: dict[str, list[PackedRows | None]] = {
        "general": [general], "ordinary": [repair], "both": [repair, general]
    }  # fmt: skip
    usual = [rows for rows in texts[rank.config.erase.relative_to] if rows is not None and len(rows)] or [repair]
    spans = pd.read_parquet(rank.run.path("tokens", "epoch-000", "token_spans.parquet"))
    by_kind = KindRows(repair, spans[spans["split"] == "repair"])
    if not rank.source.masked:
        return by_kind, usual, by_kind.kinds
    mask = rank.source.mask_token
    sensitive = HiddenRows(by_kind, every_token(repair, SENSITIVE, parts=1), mask)
    return sensitive, [HiddenRows(rows, every_token(rows, LEARN), mask) for rows in usual], by_kind.kinds
