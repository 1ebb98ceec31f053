"""Rows whose sensitive tokens say of which kind they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from sani_dist.corpus.rows import SENSITIVE, Batch, PackedRows

# Roles are bytes; kinds beyond these are the rarest, and stay without one.
MOST_KINDS = 253


class KindRows:
    """The rows of a split, in which a sensitive token of kind `kinds[i]` has the role SENSITIVE + 1 + i. Those of no span keep theirs."""

    def __init__(self, rows: PackedRows, spans: pd.DataFrame) -> None:
        """`spans`: of the split, with columns row, first, end (tokens), kind."""
        self.row_length = rows.row_length
        self.kinds = tuple(sorted(spans["kind"].value_counts().index[:MOST_KINDS]))
        known = spans[spans["kind"].isin(self.kinds)]
        numbers = known["kind"].map({kind: SENSITIVE + 1 + i for i, kind in enumerate(self.kinds)})
        self._rows = rows
        self._spans: dict[int, list[tuple[int, int, int]]] = {}
        for row, first, end, role in zip(known["row"], known["first"], known["end"], numbers, strict=True):
            self._spans.setdefault(int(row), []).append((int(first), int(end), int(role)))

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        batch = self._rows.batch(indices)
        kind = np.full(batch.role.shape, SENSITIVE, np.uint8)
        for place, row in enumerate(indices):
            for first, end, role in self._spans.get(row, ()):
                kind[place, first:end] = role
        return replace(batch, role=torch.where(batch.role == SENSITIVE, torch.from_numpy(kind), batch.role))
