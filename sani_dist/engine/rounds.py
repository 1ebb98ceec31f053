"""Dealing micro-batches to ranks so that their content never depends on the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

from sani_dist.engine import distributed


def rounds(count: int, size: int) -> Iterator[tuple[range, list[range]]]:
    """Cut `count` items into micro-batches of `size` and deal them round-robin; all ranks get equally many rounds.

    Yields, each round, the items of this rank's micro-batch (empty when they have run out: the rank still joins the collectives of a
    forward pass) and those of every rank, in rank order. Read in that order, results are in item order at any world size.
    """
    ranks = distributed.world_size()
    for first in range(0, count, size * ranks):
        dealt = [range(min(first + r * size, count), min(first + (r + 1) * size, count)) for r in range(ranks)]
        yield dealt[distributed.rank()], dealt
