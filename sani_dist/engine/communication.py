"""What a training step communicates: the formula, and DeepSpeed's own log of it (docs/communication.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

GATHER, REDUCE = "all_gather_into_tensor", "reduce_scatter_tensor"


def step_bytes(
    gathered: Iterable[int], trained: Iterable[int], *, ranks: int, micro_batches: int, weight_bytes: int, persistent: int,
    gathers: int = 1,
) -> dict[str, int]:  # fmt: skip
    """Bytes that one rank hands to each operation of ZeRO-3 in a step.

    Args:
        gathered: elements of each parameter that the forward pass uses; of `trained`, those with gradients.
        micro_batches: of one rank in a step.
        persistent: parameters of at most so many elements stay gathered, and are gathered anew after each step alone.
        gathers: in a micro-batch; 1 if parameters stay gathered from forward to backward, else 2.
    """
    gathered = list(gathered)
    each = sum(_shard(numel, ranks) for numel in gathered if numel > persistent)
    kept = sum(_shard(numel, ranks) for numel in gathered if numel <= persistent)
    return {
        GATHER: weight_bytes * (micro_batches * gathers * each + kept),
        REDUCE: weight_bytes * micro_batches * sum(ranks * _shard(numel, ranks) for numel in trained),
    }


@contextmanager
def logged() -> Iterator[dict[str, int]]:
    """Bytes that this rank hands to each of DeepSpeed's operations inside the block, filled in at its end."""
    import deepspeed
    from deepspeed.comm.comm import comms_logger

    found: dict[str, int] = {}
    comms_logger.comms_dict.clear()
    deepspeed.comm.configure(enabled=True, prof_all=True, verbose=False)
    try:
        yield found
    finally:
        deepspeed.comm.configure(enabled=False)
        for operation, sizes in comms_logger.comms_dict.items():
            found[operation] = sum(size * entry[0] for size, entry in sizes.items())


def _shard(numel: int, ranks: int) -> int:
    return -(-numel // ranks)
