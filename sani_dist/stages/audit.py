"""Stages `audit-before` and `audit-after`: what the model gives away and what it can do, of the source and of what will be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import pandas as pd

from sani_dist.audit.masked import audit_masked
from sani_dist.audit.measure import audit, audit_use, reference_scores
from sani_dist.audit.measurement import Measurement
from sani_dist.audit.scores import TokenScores
from sani_dist.corpus import PackedRows
from sani_dist.engine.zero3 import Engine
from sani_dist.files import file_sha256
from sani_dist.report.redact import redacted
from sani_dist.run import build
from sani_dist.stages.rank import Outputs, Rank, for_audit, write_json

SCHEMA = 1
SPLITS = ("repair", "control", "heldout", "general_test")


def before(rank: Rank) -> Outputs:
    """Audit the source, and what it can be compared with of the model before the sensitive training."""
    base = _base(rank)
    return {**base, **_audit(rank, rank.original(), "before", rank.source_hashes["model_sha256"])}


def after(rank: Rank) -> Outputs:
    """Audit the sanitised model."""
    return _audit(rank, rank.sanitised(), "after", None)


def _audit(rank: Rank, engine: Engine, when: str, model_sha256: str | None) -> Outputs:
    settings, splits = rank.config.audit, rank.splits(SPLITS)
    for_audit(engine)

    def report(done: int, total: int) -> None:
        rank.metrics.progress(f"audit-{when}", done, total, "rows")

    if engine.masked:
        found = audit_masked(engine, splits, rank.corpus, rank.source.mask_token, settings, report)
    else:
        reference = _reference(rank, splits)
        found = audit(engine, splits, rank.corpus, rank.source.tokenizer, settings, reference, report)
    rank.curves.add_audit(when, found.measurements)
    tables = {"losses": found.losses, "use": found.use}
    return _write(rank, when, model_sha256, found.measurements, found.not_finite, tables)


def _base(rank: Rank) -> Outputs:
    """What copying and plausibility were in the model before the sensitive training, if it can be asked; its weights are there only for
    that."""
    base, splits = rank.source.before_training(), rank.splits(("control",))
    if base is None or rank.source.masked or "use" not in rank.config.audit.metrics:
        return {}
    engine = rank.load(base)
    engine.for_inference()
    measured, sums = audit_use(
        engine, splits, rank.corpus, rank.source.tokenizer, rank.config.audit,
        lambda done, total: rank.metrics.progress("audit-before", done, total, "rows of the base"),
    )  # fmt: skip
    engine.close()
    return _write(rank, "base", rank.source_hashes["base_sha256"], measured, {}, {"use": sums})


def _write(
    rank: Rank,
    name: str,
    model_sha256: str | None,
    measured: Sequence[Measurement],
    not_finite: Mapping[str, int],
    tables: Mapping[str, pd.DataFrame],
) -> Outputs:
    """Write `name`.json and a table for each of `tables`; returns their paths."""
    paths = [rank.run.path("audit", f"{name}-{table}.parquet") for table in tables]
    path = rank.run.path("audit", f"{name}.json")
    if rank.first:
        for of_table, lines in zip(paths, tables.values(), strict=True):
            build(of_table, lines.to_parquet)
        document = {
            "schema": SCHEMA,
            "model_sha256": model_sha256,
            "corpus_sha256": file_sha256(rank.run.path("corpus", "spans.parquet")),
            "settings": redacted(rank.config.audit.model_dump(mode="json")),
            "not_finite": not_finite,
            "measurements": [asdict(m) for m in measured],
        }
        build(path, lambda temporary: write_json(temporary, document))
    return dict.fromkeys([path, *paths])


def _reference(rank: Rank, splits: Mapping[str, PackedRows]) -> dict[str, TokenScores]:
    """Scores by `audit.reference`, whose weights are there only while it is asked."""
    settings = rank.config.audit
    if settings.reference is None or "membership" not in settings.metrics:
        return {}
    engine = rank.load(rank.source.other(settings.reference))
    engine.for_inference()
    scores = reference_scores(engine, splits, settings)
    engine.close()
    return scores
