"""What the model before erasing predicts at ordinary tokens, kept from before the first step: nobody has to hold two models.

Of each distribution `top` tokens and their log-probabilities, 8 x `top` bytes for each learnable token: `repair/teacher/` (`kept.py`). They
come of a model that remembers, so they are as sensitive as the text. Text with surrogates has none: in the place of an identity the model
before erasing expects the true one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from sani_dist.corpus.rows import LEARN, Batch, targets
from sani_dist.engine.zero3 import Engine
from sani_dist.kernels import Scores, Teacher, token_scores
from sani_dist.repair.kept import Kept, Place, keep


class Predictions:
    """What the model before erasing predicts, for each of the places that it was asked about."""

    def __init__(self, folder: Path, places: Sequence[Place], top: int) -> None:
        self._top = top
        self._kept = Kept(folder, places, [8 * top * int(text.learnable[row]) for text, row in places])

    def of(
        self, places: Sequence[Place], row_length: int, index: torch.Tensor, role: torch.Tensor, weight: float
    ) -> Teacher:
        """For the targets of a micro-batch, as `targets` gives them; its first rows are `places`."""
        known = torch.zeros(len(index), dtype=torch.bool)
        ids = torch.zeros((len(index), self._top), dtype=torch.int64)
        logprob = torch.zeros((len(index), self._top))
        for row, place in enumerate(places):
            if place in self._kept:
                here = (index // row_length == row) & (role == LEARN)
                found = self._kept.of(place, torch.int32).view(2, -1, self._top)
                known |= here
                ids[here], logprob[here] = found[0].long(), found[1].view(torch.float32)
        return Teacher(ids, logprob, known, weight)


def predictions(engine: Engine, places: Sequence[Place], folder: Path, top: int, inputs_sha256: str) -> None:
    """Keep what the model, as it is now, predicts at the learnable tokens of `places`, unless `folder` has it.

    Every rank calls this. Raises RunError when one could not write.
    """
    engine.for_inference()

    def compute(batch: Batch) -> torch.Tensor:
        index, target, _, _ = targets(batch, (LEARN,))
        found: Scores = engine.forward(batch.input_ids, batch.position, partial(_likeliest, index, target, top))
        assert found.top_ids is not None
        assert found.top_logprob is not None
        return torch.stack([found.top_ids.int(), found.top_logprob.float().view(torch.int32)])

    keep(folder, places, inputs_sha256, compute, lambda _: {"top": top}, "predictions of the model before erasing")


def _likeliest(index: torch.Tensor, target: torch.Tensor, top: int, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> Scores:  # fmt: skip # noqa: E501
    device = hidden.device
    return token_scores(hidden, weight, target.to(device), index.to(device), bias=bias, softcap=softcap, top_k=top)
