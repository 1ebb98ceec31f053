"""One sharded forward pass over packed rows: what the model makes of every target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from sani_dist.corpus.rows import LEARN, SENSITIVE, Batch, Rows, targets
from sani_dist.engine import distributed
from sani_dist.engine.map_rows import map_rows
from sani_dist.engine.zero3 import Engine
from sani_dist.kernels import Scores, token_scores


@dataclass(frozen=True)
class TokenScores:
    """Scores of each token as a target, [rows, row_length].

    logprob float32 (NaN where not a target), is_argmax bool. Only if asked for: rank int32, the number of likelier tokens (-1 where not
    a target), and the moments that Min-K%++ needs, mean_logprob and std_logprob float32, of log p(z) over z drawn from p.
    """

    logprob: np.ndarray
    is_argmax: np.ndarray
    rank: np.ndarray | None = None
    mean_logprob: np.ndarray | None = None
    std_logprob: np.ndarray | None = None
    # Targets whose log-probability is no finite number. A broken model must not look as if it had forgotten.
    not_finite: int = 0


# Puts an attention mask of its own into the forward passes of a batch.
Attention = Callable[[Engine, Batch], AbstractContextManager[object]]


def packed(engine: Engine, batch: Batch) -> AbstractContextManager[object]:
    """The attention of ordinary rows: transformers finds the documents by the positions that restart."""
    return nullcontext()


# What the head is given in place of the last hidden states [tokens, hidden_size].
View = Callable[[torch.Tensor], torch.Tensor]


def score(
    engine: Engine,
    rows: Rows,
    micro_rows: int,
    report: Callable[[int], None] = lambda done: None,
    *,
    rank: bool = False,
    moments: bool = False,
    attention: Attention = packed,
) -> TokenScores:
    """Score every learnable and sensitive token of `rows`. Same integers at every world size; all ranks get the result.

    Beside the result, memory is that of one micro-batch. `rank`, `moments`: also carry these, four and eight bytes a token.
    """
    views: tuple[View, ...] = (lambda hidden: hidden,)
    return score_views(engine, rows, micro_rows, views, report, rank=rank, moments=moments, attention=attention)[0]


@torch.no_grad()
def score_views(
    engine: Engine,
    rows: Rows,
    micro_rows: int,
    views: Sequence[View],
    report: Callable[[int], None] = lambda done: None,
    *,
    roles: Sequence[int] = (LEARN, SENSITIVE),
    rank: bool = False,
    moments: bool = False,
    attention: Attention = packed,
) -> list[TokenScores]:
    """`score` for each of several hidden states of one forward pass. `roles`: the tokens to score."""
    fields = [
        "logprob",
        "is_argmax",
        *(["rank"] if rank else []),
        *(["mean_logprob", "std_logprob"] if moments else []),
    ]
    shape = (len(rows), rows.row_length)
    found = [_empty(fields, shape) for _ in views]
    broken = torch.zeros(len(views), dtype=torch.float64, device=engine.device)

    def compute(batch: Batch) -> torch.Tensor:
        index, target, _, _ = targets(batch, roles=roles)
        with attention(engine, batch):
            scored = engine.forward(batch.input_ids, batch.position, partial(_scores, index, target, moments, views))
        broken.add_(torch.stack([(~torch.isfinite(seen.logprob)).sum() for seen in scored]).to(broken))
        # One exchange for all: fp32 holds a rank exactly, which is below the vocabulary and so below 2^24.
        sent = torch.full((len(views), len(fields), micro_rows * rows.row_length), torch.nan, dtype=torch.float32)
        for of_view, seen in zip(sent, scored, strict=True):
            for line, name in zip(of_view, fields, strict=True):
                line[index + (batch.label is None)] = getattr(seen, name).float().cpu()
        return sent

    for items, made in map_rows(engine, rows, micro_rows, compute, report=report):
        of_views = made.numpy().reshape(len(views), len(fields), micro_rows, rows.row_length)[:, :, : len(items)]
        for arrays, values in zip(found, of_views, strict=True):
            for name, value in zip(fields, values, strict=True):
                there = ~np.isnan(value)
                arrays[name][items.start : items.stop][there] = value[there]
    counts = distributed.sum_over_ranks(broken).tolist()
    return [TokenScores(**arrays, not_finite=int(count)) for arrays, count in zip(found, counts, strict=True)]


def _empty(fields: Sequence[str], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """Arrays of what is said of tokens that are no targets."""
    integers = {"is_argmax": np.zeros(shape, dtype=bool), "rank": np.full(shape, -1, dtype=np.int32)}
    return {name: integers.get(name, np.full(shape, np.nan, dtype=np.float32)) for name in fields}


def _scores(index: torch.Tensor, target: torch.Tensor, moments: bool, views: Sequence[View], hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None) -> list[Scores]:  # fmt: skip # noqa: E501
    target, index = target.to(hidden.device), index.to(hidden.device)
    return [
        token_scores(view(hidden), weight, target, index, bias=bias, softcap=softcap, moments=moments) for view in views
    ]
