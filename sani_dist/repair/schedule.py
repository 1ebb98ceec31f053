"""Learning rate and data order as functions of the step alone, so that a resumed run needs no more than its step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from sani_dist.config import RepairSettings
from sani_dist.corpus.rows import PackedRows


class Schedule:
    """Which rows each step takes, and at which learning rate."""

    def __init__(self, settings: RepairSettings, texts: Sequence[PackedRows], retain: PackedRows | None) -> None:
        """`texts`: the repair text of each epoch; `retain`: general text, mixed in at the share `settings.retain`."""
        self.settings = settings
        sizes = [len(rows) for rows in texts]
        # A last epoch may be a part of one: of the number as it is written, for in floating point 1.04 - 1 is more than 0.04.
        part = Fraction(str(settings.epochs)) - len(sizes) + 1
        self.taken = sum(sizes[:-1]) + math.ceil(part * sizes[-1]) if sizes else 0
        self._sizes = sizes
        self.retain = len(retain) if retain is not None and settings.retain > 0 else 0
        # At least one row is of the repair text: both together are never more than the ranks take in a step.
        self.retain_rows = (
            min(round(settings.batch_rows * settings.retain), settings.batch_rows - 1) if self.retain else 0
        )
        self.own_rows = settings.batch_rows - self.retain_rows
        self.steps = math.ceil(self.taken / self.own_rows)

    def batch(self, step: int) -> tuple[list[tuple[int, int]], list[int]]:
        """(epoch, row) of the repair text and rows of the retained text in the global batch of `step`. The last batch may be short."""
        first = step * self.own_rows
        seed, last = self.settings.seed, min(first + self.own_rows, self.taken)
        own = list(_shuffled(seed, 0, self._sizes, first, last))
        general = _shuffled(
            seed, 1, itertools.repeat(self.retain), step * self.retain_rows, (step + 1) * self.retain_rows
        )
        return own, [row for _, row in general]

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch is over after `step` steps that was not after one less."""
        over = np.cumsum(self._sizes)
        reached, before = (min(s * self.own_rows, self.taken) for s in (step, step - 1))
        return bool(((before < over) & (over <= reached)).any())

    def learning_rate(self, step: int) -> float:
        warmup = round(self.settings.warmup * self.steps)
        if step < warmup:
            return self.settings.learning_rate * (step + 1) / (warmup + 1)
        if self.settings.schedule == "constant":
            return self.settings.learning_rate
        share = (step - warmup) / max(1, self.steps - warmup)
        factor = 1 - share if self.settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return self.settings.learning_rate * factor


def _shuffled(seed: int, stream: int, sizes: Iterable[int], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Positions [first, last) of a sequence of (epoch, row) that passes over the rows of each epoch, in another order each time."""
    start = 0
    for epoch, size in enumerate(sizes):
        if start >= last:
            return
        if first < start + size:
            order = np.random.Generator(np.random.Philox(key=[seed, (epoch << 1) | stream])).permutation(size)
            for row in order[max(0, first - start) : last - start]:
                yield epoch, int(row)
        start += size
