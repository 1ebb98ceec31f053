"""What is hidden from a masked language model: to train it, and to ask it.

A hidden token is a target: the model sees the mask token in its place (in training now and then another token, or itself), and the
batch's `label` says what it has to find there. Sensitive tokens are never hidden in training, so that nothing is learnt of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sani_dist.corpus.rows import IGNORE, Batch, PackedRows, Rows

# BERT's (arXiv 1810.04805): tokens that are hidden, and what stands there instead of the mask: a random token, the token itself.
HIDDEN_SHARE, RANDOM_SHARE, KEPT_SHARE = 0.15, 0.1, 0.1
# Of the ordinary tokens of a row one in so many is asked for at a time, which leaves about as much to see as training does.
ASKED_IN_PARTS = 7


@dataclass(frozen=True)
class Masking:
    """What training hides of a row, drawn anew for each row of each step; `roles`: of the tokens that may be hidden."""

    mask_token: int
    vocabulary: int
    seed: int
    roles: tuple[int, ...]

    def count(self, eligible: int) -> int:
        """How many of so many tokens are hidden."""
        return max(1, round(HIDDEN_SHARE * eligible)) if eligible else 0

    def hide(self, row: Batch, number: int) -> Batch:
        """A batch of one row with tokens hidden; `number`: of the row in the order in which training takes them."""
        draw = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        eligible = np.flatnonzero(np.isin(row.role[0].numpy(), self.roles))
        columns = np.sort(draw.permutation(eligible)[: self.count(len(eligible))])
        shown, luck = np.full(len(columns), self.mask_token), draw.random(len(columns))
        drawn = draw.integers(0, self.vocabulary, len(columns))
        shown = np.where(luck < RANDOM_SHARE + KEPT_SHARE, drawn, shown)
        shown = np.where(luck < KEPT_SHARE, row.input_ids[0, columns].numpy(), shown)
        return _hidden(row, [columns], [shown])


class HiddenRows:
    """Rows to ask about: of each, the tokens at some columns are masked, and are its only targets."""

    def __init__(self, rows: Rows, hidden: Sequence[tuple[int, np.ndarray]], mask_token: int) -> None:
        """`hidden`: (row, columns) of each."""
        self.row_length = rows.row_length
        self.hidden = hidden
        self._rows, self._mask_token = rows, mask_token

    def __len__(self) -> int:
        return len(self.hidden)

    def batch(self, indices: Sequence[int]) -> Batch:
        columns = [self.hidden[i][1] for i in indices]
        batch = self._rows.batch([self.hidden[i][0] for i in indices])
        return _hidden(batch, columns, [np.full(len(c), self._mask_token) for c in columns])


def every_token(rows: PackedRows, role: int, parts: int = ASKED_IN_PARTS) -> list[tuple[int, np.ndarray]]:
    """(row, columns) that ask for each token of `role` once, those of a row in so many parts; 1: all together."""
    found = []
    for row in range(len(rows)):
        columns = np.flatnonzero(rows.batch([row]).role[0].numpy() == role)
        found += [(row, columns[first::parts]) for first in range(min(parts, len(columns)))]
    return found


def _hidden(batch: Batch, columns: Sequence[np.ndarray], shown: Sequence[np.ndarray]) -> Batch:
    """`batch` with other tokens shown at some columns of each row, which become its only targets."""
    input_ids, role = batch.input_ids.clone(), torch.full_like(batch.role, IGNORE)
    for i, (places, ids) in enumerate(zip(columns, shown, strict=True)):
        at = torch.from_numpy(places)
        input_ids[i, at] = torch.from_numpy(ids).long()
        role[i, at] = batch.role[i, at]
    return replace(batch, input_ids=input_ids, role=role, label=batch.input_ids)
