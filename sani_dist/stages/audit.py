"""Stages `audit-before` and `audit-after`: what the model gives away and what it can do, of the source and of what will be exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from sani_dist.audit.masked import audit_masked
from sani_dist.audit.measure import audit, reference_scores
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
    """Audit the source."""
    return _audit(rank, rank.original(), "before", rank.source_hashes["model_sha256"])


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
    path, losses = rank.run.path("audit", f"{when}.json"), rank.run.path("audit", f"{when}-losses.parquet")
    if rank.first:
        build(losses, found.losses.to_parquet)
        document = {
            "schema": SCHEMA,
            "model_sha256": model_sha256,
            "corpus_sha256": file_sha256(rank.run.path("corpus", "spans.parquet")),
            "settings": redacted(settings.model_dump(mode="json")),
            "not_finite": found.not_finite,
            "measurements": [asdict(m) for m in found.measurements],
        }
        build(path, lambda temporary: write_json(temporary, document))
    return dict.fromkeys([path, losses])


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
