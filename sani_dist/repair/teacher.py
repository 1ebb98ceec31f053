"""What other models predict at the tokens of a text, kept from before the first step: nobody has to hold two models.

At ordinary tokens the model before erasing (objective `kl`), at the first occurrences of sensitive values one that never knew them, the
reference (objective `aim`). Of each distribution `top` tokens and their log-probabilities, 8 x `top` bytes for each token, in
`repair/teacher/` and `repair/reference/` (`row_cache.py`). They come of a model that remembers, so they are as sensitive as the text. Text
with surrogates has none: in the place of an identity the model before erasing expects the true one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from sani_dist.corpus.rows import AIM, LEARN, Batch, PackedRows, targets
from sani_dist.engine.zero3 import Engine
from sani_dist.kernels import Scores, Teacher, token_scores
from sani_dist.repair.row_cache import Place, RowCache, cache_rows


class Predictions:
    """What is predicted at tokens of some roles, for each of the places that was asked about. Those of role AIM are of `aimed` rows."""

    def __init__(self, folders: Mapping[int, Path], places: Sequence[Place], top: int) -> None:
        """`folders`: by role, where it is kept."""
        self._top = top
        self._cache = {
            role: RowCache(folder, places, [8 * top * count_of(role, text, row) for text, row in places])
            for role, folder in folders.items()
        }

    def of(
        self, places: Sequence[Place], row_length: int, index: torch.Tensor, role: torch.Tensor, weight: float
    ) -> Teacher:
        """For the targets of a micro-batch, as `targets` gives them; its first rows are `places`. `weight`: at ordinary tokens."""
        known = torch.zeros(len(index), dtype=torch.bool)
        ids = torch.zeros((len(index), self._top), dtype=torch.int64)
        logprob = torch.zeros((len(index), self._top))
        for wanted, kept in self._cache.items():
            for row, place in enumerate(places):
                if place in kept:
                    here = (index // row_length == row) & (role == wanted)
                    found = kept.of(place, torch.int32).view(2, -1, self._top)
                    known |= here
                    ids[here], logprob[here] = found[0].long(), found[1].view(torch.float32)
        return Teacher(ids, logprob, known, weight)


def count_of(role: int, text: PackedRows, row: int) -> int:
    """How many tokens of a row have a role: LEARN, or of `aimed` rows AIM."""
    return int({LEARN: text.learnable, AIM: text.sensitive}[role][row])


def predictions(
    engine: Engine, places: Sequence[Place], folder: Path, top: int, inputs_sha256: str, role: int = LEARN, blind: bool = False
) -> None:  # fmt: skip
    """Keep what a model, as it is now, predicts at the tokens of `role` in `places`, unless `folder` has it.

    blind: it must not tell the token that stands there, whose probability the others share in proportion to theirs. Every rank calls
    this. Raises RunError when one could not write.
    """
    engine.for_inference()

    def compute(batch: Batch) -> torch.Tensor:
        index, target, _, _ = targets(batch, (role,))
        found: Scores = engine.forward(batch.input_ids, batch.position, partial(likeliest, index, target, top + blind))
        assert found.top_ids is not None
        assert found.top_logprob is not None
        ids, logprob = found.top_ids, found.top_logprob.float()
        if blind:
            ids, logprob = without(target.to(ids.device), found.logprob, ids, logprob)
        return as_kept(ids, logprob)

    cache_rows(folder, places, inputs_sha256, compute, lambda _: {"top": top}, "predictions of another model")


def without(
    target: torch.Tensor, target_logprob: torch.Tensor, ids: torch.Tensor, logprob: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distributions known at k tokens, best first, without the token `target` of log-probability `target_logprob`, renormalised.

    ids, logprob: [rows, k]. Returns both for k - 1 tokens.
    """
    is_target = ids == target.unsqueeze(1)
    place = torch.where(is_target.any(dim=1), is_target.int().argmax(dim=1), ids.shape[1] - 1).unsqueeze(1)
    others = torch.arange(ids.shape[1] - 1, device=ids.device).expand(len(ids), -1)
    others = others + (others >= place)
    ids, logprob = ids.gather(1, others), logprob.gather(1, others)
    # 1 - p keeps its digits near p = 1, and is never less than what is known of it.
    rest = torch.maximum(torch.log(-torch.expm1(target_logprob)), logprob.logsumexp(dim=1))
    return ids, logprob - rest.unsqueeze(1)


def as_kept(ids: torch.Tensor, logprob: torch.Tensor) -> torch.Tensor:
    """The record of a place: int32 [2, tokens, top]."""
    return torch.stack([ids.int(), logprob.float().contiguous().view(torch.int32)])


def likeliest(index: torch.Tensor, target: torch.Tensor, top: int, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> Scores:  # fmt: skip # noqa: E501
    """What a forward pass ends in: scores of `target` and the `top` likeliest tokens."""
    device = hidden.device
    return token_scores(hidden, weight, target.to(device), index.to(device), bias=bias, softcap=softcap, top_k=top)
