"""One loop over rows for all that measures: micro-batches dealt to ranks, results gathered, the same at every world size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from sani_dist.corpus.rows import Batch, Rows, empty_batch, stacked
from sani_dist.engine import distributed
from sani_dist.engine.host_memory import give_back
from sani_dist.engine.zero3 import Engine

Report = Callable[[int], None]


def map_rows(
    engine: Engine,
    rows: Rows,
    micro_rows: int,
    compute: Callable[[Batch], torch.Tensor],
    *,
    count: int | None = None,
    report: Report = lambda done: None,
) -> Iterator[tuple[range, torch.Tensor]]:
    """(rows, what `compute` makes of them) for each micro-batch of the first `count` rows, in row order, the same on every rank.

    compute: a micro-batch of `micro_rows` rows -> a tensor on any device, of one shape for all; it is called equally often on every rank,
    so collectives within stay symmetric. A short micro-batch is filled up with padding: kernels may sum other shapes in another order.
    report: called with the rows done.
    """

    def of_round(mine: range, dealt: Sequence[range]) -> torch.Tensor:
        parts = [rows.batch(mine)] if mine else []
        if len(mine) < micro_rows:
            parts.append(empty_batch(micro_rows - len(mine), rows.row_length))
        return compute(stacked(parts) if len(parts) > 1 else parts[0]).to(engine.device)

    for items, made in map_rounds(len(rows) if count is None else count, micro_rows, of_round, report):
        yield items, made
        if engine.device.type == "cpu":
            give_back()


def map_rounds(
    count: int, size: int, compute: Callable[[range, Sequence[range]], torch.Tensor], report: Report = lambda done: None
) -> Iterator[tuple[range, torch.Tensor]]:
    """`map_rows` for anything that can be numbered. compute: (numbers of this rank's micro-batch, those of every rank) -> a tensor of one
    shape on all ranks; results come on the CPU."""
    for mine, dealt in rounds(count, size):
        gathered = distributed.gather_in_rank_order(compute(mine, dealt)).cpu()
        for items, made in zip(dealt, gathered, strict=True):
            if items:
                yield items, made
        report(dealt[-1].stop)


def rounds(count: int, size: int) -> Iterator[tuple[range, list[range]]]:
    """Cut `count` items into micro-batches of `size` and deal them round-robin; all ranks get equally many rounds.

    Yields, each round, the items of this rank's micro-batch (empty when they have run out: the rank still joins the collectives of a
    forward pass) and those of every rank, in rank order.
    """
    ranks = distributed.world_size()
    for first in range(0, count, size * ranks):
        dealt = [range(min(first + r * size, count), min(first + (r + 1) * size, count)) for r in range(ranks)]
        yield dealt[distributed.rank()], dealt
