"""Learning rate and data order as functions of the step alone, so that a resumed run needs no more than its step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from sani_dist.config import RepairSettings
from sani_dist.corpus.rows import PackedRows


class Schedule:
    """Which rows each step takes, and at which learning rate."""

    def __init__(self, settings: RepairSettings, rows: PackedRows, retain: PackedRows | None) -> None:
        """`rows`: the repair text; `retain`: general text, mixed in at the share `settings.retain`."""
        self.settings = settings
        self.rows = len(rows)
        self.retain = len(retain) if retain is not None and settings.retain > 0 else 0
        # At least one row is of the repair text: both together are never more than the ranks take in a step.
        self.retain_rows = (
            min(round(settings.batch_rows * settings.retain), settings.batch_rows - 1) if self.retain else 0
        )
        self.own_rows = settings.batch_rows - self.retain_rows
        self.steps = math.ceil(settings.epochs * self.rows / self.own_rows)

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """Rows of the repair text and of the retained text in the global batch of `step`. The last batch may be short."""
        first = step * self.own_rows
        last = min(first + self.own_rows, math.ceil(self.settings.epochs * self.rows))
        own = list(_shuffled(self.settings.seed, 0, self.rows, first, last))
        retained = list(
            _shuffled(self.settings.seed, 1, self.retain, step * self.retain_rows, (step + 1) * self.retain_rows)
        )
        return own, retained

    def learning_rate(self, step: int) -> float:
        warmup = round(self.settings.warmup * self.steps)
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / (warmup + 1)
        if self.settings.schedule == "constant":
            return self.settings.learning_rate
        share = (step - warmup) / max(1, self.steps - warmup)
        factor = 1 - share if self.settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.settings.learning_rate * factor


def _shuffled(seed: int, stream: int, count: int, first: int, last: int) -> Iterator[int]:
    """Positions [first, last) of an endless sequence that passes over `count` rows, in another order each epoch."""
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for position in range(first, last):
        if position // count != epoch:
            epoch = position // count
            order = np.random.Generator(np.random.Philox(key=[seed, (epoch << 1) | stream])).permutation(count)
        yield int(order[position % count])
