"""What the frozen trunk gives, kept from before the first step: it is the same in every epoch, so it is computed once for each row.

That is what enters the first trained layer, in the precision of the model: `repair/trunk/` (`row_cache.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sani_dist.corpus.rows import Batch
from sani_dist.engine.zero3 import Engine
from sani_dist.repair.row_cache import Place, RowCache, cache_rows


class States:
    """What enters the first trained layer, for each of the places that it was computed for."""

    def __init__(self, cache: RowCache, tokens: int, hidden_size: int, dtype: torch.dtype) -> None:
        self._cache, self._shape, self._dtype = cache, (tokens, hidden_size), dtype

    def of(self, places: Sequence[Place], rows: int) -> torch.Tensor:
        """[rows, tokens, hidden_size]: those of `places`, then zeros."""
        states = torch.zeros((rows, *self._shape), dtype=self._dtype)
        for i, place in enumerate(places):
            states[i] = self._cache.of(place, self._dtype).view(self._shape)
        return states


def states_below(engine: Engine, places: Sequence[Place], folder: Path, inputs_sha256: str) -> States:
    """Run the trunk on `places`, the same on all ranks and none twice, unless `folder` has what comes of it.

    Every rank calls this. Raises RunError when one could not write.
    """
    with engine.frozen_layers_alone() as run:

        def compute(batch: Batch) -> torch.Tensor:
            return run(batch.input_ids, batch.position)

        document = cache_rows(folder, places, inputs_sha256, compute, _facts, "hidden states of the frozen trunk")
    tokens, hidden_size, dtype = document["tokens"], document["hidden_size"], getattr(torch, document["dtype"])
    size = tokens * hidden_size * dtype.itemsize
    return States(RowCache(folder, places, [size] * len(places)), tokens, hidden_size, dtype)


def _facts(states: torch.Tensor) -> dict[str, str | int]:
    _, tokens, hidden_size = states.shape
    return {"dtype": str(states.dtype).removeprefix("torch."), "tokens": tokens, "hidden_size": hidden_size}
