"""The process group of a run: set-up, and the three collectives that stages need beside DeepSpeed's own."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from sani_dist.errors import RunError

TIMEOUT = timedelta(minutes=30)


def start(threads: int | None) -> None:
    """Join the process group that the launcher described in RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR/PORT.

    `threads`: CPU threads of this process; launchers set OMP_NUM_THREADS differently, and sums depend on it.
    Raises RunError when launcher, DeepSpeed and torch disagree on rank or world size.
    """
    # torch 2.13 warns once for every collective DeepSpeed 0.19.8 starts on tensors it considers deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")

    import deepspeed  # slow to import, and it reads DS_ACCELERATOR when imported
    from deepspeed.accelerator import get_accelerator

    world_size, local = int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)
    seen = {deepspeed.comm.get_world_size(), dist.get_world_size(), world_size}
    if len(seen) != 1 or dist.get_rank() != int(os.environ["RANK"]):
        raise RunError(
            f"the launcher says rank {os.environ['RANK']} of {world_size}, DeepSpeed {deepspeed.comm.get_world_size()}, "
            f"torch rank {dist.get_rank()} of {dist.get_world_size()}: start all ranks with one launcher"
        )


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a small tensor over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_in_rank_order(values: torch.Tensor) -> torch.Tensor:
    """Stack a tensor of every rank, all of one shape: [world_size, *shape], the same on each rank."""
    if world_size() == 1:
        return values.unsqueeze(0)
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.stack(parts)


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
