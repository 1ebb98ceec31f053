"""What every attack is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from sani_dist.attack.result import PREFERENCE
from sani_dist.audit.extraction import extraction, score_spans
from sani_dist.audit.measurement import Measurement, bootstrap_by_document
from sani_dist.audit.scores import TokenScores
from sani_dist.audit.spans import SPLITS, Corpus
from sani_dist.config import AttackSettings, AuditSettings, RepairSettings
from sani_dist.corpus.rows import PackedRows
from sani_dist.engine.source import Source
from sani_dist.engine.zero3 import Engine


@dataclass(frozen=True)
class AttackContext:
    """The text an attacker is judged on, and how to get at a model. Every rank has the same.

    rows: of the splits there are. related: documents of the same format about others, in no split; None unless the user gave some. load:
    a model -> its shards under ZeRO-3, not yet wrapped. before: the model that was sanitised; None where the attacked
    one is it. made: variants of the attack that an earlier start left; it need not make them again.
    """

    rows: Mapping[str, PackedRows]
    related: PackedRows | None
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    load: Callable[[Source], Engine]
    before: Source | None
    settings: AttackSettings
    audit: AuditSettings
    repair: RepairSettings
    made: Collection[str] = ()

    @cached_property
    def spans(self) -> pd.DataFrame:
        """Those that count: their values cannot be copied from the text before them."""
        spans = self.corpus.spans()
        return spans[~spans["in_context"]].reset_index(drop=True)

    @property
    def audited(self) -> list[str]:
        """The splits that hold the spans."""
        return [split for split in SPLITS.values() if split in self.rows]

    def sample(self, most: int, spans: pd.DataFrame | None = None) -> pd.DataFrame:
        """At most `most` spans of each population of `spans` (unless given, of all there are), the same for a seed."""
        table, parts = self.spans if spans is None else spans, []
        for split in SPLITS.values():
            here = table[table["split"] == split].sort_values("span_id")
            size = min(len(here), most)
            parts.append(here.iloc[sorted(random.Random(self.settings.seed).sample(range(len(here)), size))])
        return pd.concat(parts, ignore_index=True)

    def measured(self, scores: Mapping[str, TokenScores], spans: pd.DataFrame | None = None) -> tuple[Measurement, ...]:
        """Extraction over all of `spans` (unless given, all there are) and of the control."""
        spans = self.spans if spans is None else spans
        return extracted(scores, spans, self.audit.samples)


def extracted(
    scores: Mapping[str, TokenScores], spans: pd.DataFrame, samples: tuple[int, ...]
) -> tuple[Measurement, ...]:
    """What the audit measures of spans, over all of each population; `scores` by split."""
    none = TokenScores(np.empty((0, 0), np.float32), np.empty((0, 0), bool))
    sensitive, control = (
        score_spans(scores.get(split, none), spans[spans["split"] == split] if split in scores else spans.iloc[:0])
        for split in SPLITS.values()
    )
    return tuple(m for m in extraction(sensitive, control, samples) if not m.group)


def preference(
    population: str, pairs: np.ndarray, documents: np.ndarray, group: dict[str, str] | None = None
) -> Measurement:
    """How often the true value is preferred to another of its kind. pairs: of each span, comparisons won and made, float64 [spans, 2]."""
    wins, count = pairs[pairs[:, 1] > 0].T
    if not len(count):
        return Measurement(PREFERENCE, population, None, None, None, 0, group or {}, "no two values of one kind")
    low, high = bootstrap_by_document(wins, count, documents[pairs[:, 1] > 0])
    return Measurement(PREFERENCE, population, float(wins.sum() / count.sum()), low, high, len(count), group or {})
