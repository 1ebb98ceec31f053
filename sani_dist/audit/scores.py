"""One sharded forward pass over packed rows: log-probability and arg-max of every target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from sani_dist.corpus.rows import LEARN, SENSITIVE, PackedRows, empty_batch, targets
from sani_dist.engine import distributed
from sani_dist.engine.rounds import rounds
from sani_dist.engine.zero3 import Engine
from sani_dist.kernels import Scores, token_scores


@dataclass(frozen=True)
class TokenScores:
    """Scores of each token as a target: logprob float32 [rows, row_length] (NaN where not a target), is_argmax bool likewise."""

    logprob: np.ndarray
    is_argmax: np.ndarray


@torch.no_grad()
def score(
    engine: Engine, rows: PackedRows, micro_rows: int, report: Callable[[int], None] = lambda done: None
) -> TokenScores:
    """Score every learnable and sensitive token of `rows`. Same integers at every world size; all ranks get the result."""
    shape = (len(rows), rows.row_length)
    result = TokenScores(np.full(shape, np.nan, dtype=np.float32), np.zeros(shape, dtype=bool))
    for mine, dealt in rounds(len(rows), micro_rows):
        missing = micro_rows - len(mine)
        batch = rows.batch(mine) if not missing else empty_batch(micro_rows, rows.row_length)
        if missing and mine:
            # The last micro-batch keeps its full shape too: kernels may sum other shapes in another order.
            for field in ("input_ids", "role", "document", "position"):
                getattr(batch, field)[: len(mine)] = getattr(rows.batch(mine), field)
        index, target, _, _ = targets(batch, roles=(LEARN, SENSITIVE))
        scored = engine.forward(batch.input_ids, batch.position, partial(_scores, index, target))
        packed = torch.full((2, micro_rows * rows.row_length), torch.nan, dtype=torch.float32)
        packed[0, index + 1] = scored.logprob.cpu()
        packed[1, index + 1] = scored.is_argmax.float().cpu()
        gathered = distributed.gather_in_rank_order(packed.to(engine.device)).cpu().numpy()
        for part, items in zip(gathered, dealt, strict=True):
            if items:
                values = part.reshape(2, micro_rows, rows.row_length)[:, : len(items)]
                result.logprob[items.start : items.stop] = values[0]
                result.is_argmax[items.start : items.stop] = values[1] == 1
        report(dealt[-1].stop)
    return result


def _scores(index: torch.Tensor, target: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> Scores:  # fmt: skip # noqa: E501
    return token_scores(hidden, weight, target.to(hidden.device), index.to(hidden.device), bias=bias)
