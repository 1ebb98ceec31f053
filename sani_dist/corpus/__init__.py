"""Text and a description of what is sensitive in it, made into rows of tokens that say what may be learnt."""

from __future__ import annotations

from sani_dist.corpus.detect import Detection, detect_spans
from sani_dist.corpus.prepare import prepare
from sani_dist.corpus.review import review_table
from sani_dist.corpus.rows import IGNORE, LEARN, SENSITIVE, Batch, PackedRows, empty_batch, targets

__all__ = [
    "IGNORE",
    "LEARN",
    "SENSITIVE",
    "Batch",
    "Detection",
    "PackedRows",
    "detect_spans",
    "empty_batch",
    "prepare",
    "review_table",
    "targets",
]
