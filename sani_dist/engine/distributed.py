"""The process group of a run: set-up, and the collectives that stages need beside DeepSpeed's own."""

from __future__ import annotations

import os
import resource
import sys
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from sani_dist.errors import InputError, RunError

T = TypeVar("T")

_timeout = timedelta(minutes=30)


def start(threads: int | None, timeout_seconds: int = 1800) -> None:
    """Join the process group that the launcher described in RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR/PORT.

    `threads`: CPU threads of this process; launchers set OMP_NUM_THREADS differently, and sums depend on it.
    `timeout_seconds`: how long a rank waits for others, here and in a collective.
    Raises InputError when the launcher's variables contradict each other, RunError when DeepSpeed or torch see other ones.
    """
    # torch 2.13 warns once for every collective DeepSpeed 0.19.8 starts on tensors it considers deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    check_launcher(os.environ)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")

    _import_deepspeed()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // ranks_of_this_host()))
    global _timeout
    _timeout = timedelta(seconds=timeout_seconds)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=_timeout, verbose=False)
    except dist.DistError as error:
        raise RunError(
            f"the {os.environ['WORLD_SIZE']} ranks did not come together at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"within {timeout_seconds} s (cluster.timeout_seconds): were all started, and do all reach that address?"
        ) from error
    seen = {
        "the launcher": (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])),
        "DeepSpeed": (deepspeed.comm.get_rank(), deepspeed.comm.get_world_size()),
        "torch": (dist.get_rank(), dist.get_world_size()),
    }
    if len(set(seen.values())) != 1:
        told = ", ".join(f"{who} says rank {rank} of {size}" for who, (rank, size) in seen.items())
        raise RunError(f"{told}: start all ranks with one launcher")


def _import_deepspeed() -> None:
    """Without MLflow. Its autotuner, which nothing here uses, would import that where it is installed, for as long as DeepSpeed itself."""
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # what the language has for a module that must not be found
    try:
        import deepspeed  # noqa: F401
    finally:
        if hidden:
            del sys.modules["mlflow"]


def limit_waiting() -> None:
    """Give every process group the timeout of `start`: those that DeepSpeed makes of the world's have torch's own, of 10 or 30 minutes."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(_timeout, group)


def check_launcher(environment: Mapping[str, str]) -> None:
    """Raises InputError, in one line, when RANK, WORLD_SIZE and LOCAL_RANK are not what one launcher sets: all of them, or none."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: environment[name] for name in names if name in environment}
    if not given:
        return
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(
            f"the launcher set {', '.join(given)} but not {', '.join(missing)}: use torchrun, deepspeed or accelerate launch"
        )
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    if not all(value.isascii() and value.isdigit() for value in given.values()):
        raise InputError(f"the launcher set {told}: expected numbers")
    rank, world_size, local_rank = (int(given[name]) for name in names)
    if not rank < world_size or not local_rank < ranks_of_this_host(environment) <= world_size:
        raise InputError(f"the launcher set {told}: these do not fit together; start all ranks with one launcher")


def ranks_of_this_host(environment: Mapping[str, str] = os.environ) -> int:
    """How many ranks share the cores and the memory of this host, as the launcher says; 1 without a launcher."""
    # torchrun and accelerate set the first, the deepspeed launcher the second.
    given = (environment.get(name, "") for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return int(next((value for value in given if value.isdigit() and int(value)), 1))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def has_bfloat16() -> bool:
    """Whether `device()` has instructions for bfloat16. Without them it is emulated: a matrix product took four times as long as in
    float32 on a Xeon with AVX-512 alone."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def peak_memory_bytes() -> int:
    """Most that this process has held until now: what torch allocated on its GPU; without one, what was resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a small tensor over all ranks, in place."""
    return _reduced(values, dist.ReduceOp.SUM)


def max_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The elementwise largest over all ranks, in place."""
    return _reduced(values, dist.ReduceOp.MAX)


def _reduced(values: torch.Tensor, how: dist.ReduceOp.RedOpType) -> torch.Tensor:
    if world_size() == 1:
        return values
    # NCCL takes tensors on a GPU alone: what is on the CPU goes there and comes back.
    sent = values.to(device())
    dist.all_reduce(sent, how)
    return values if sent is values else values.copy_(sent)


def gather_in_rank_order(values: torch.Tensor) -> torch.Tensor:
    """Stack a tensor of every rank, all of one shape: [world_size, *shape], the same on each rank, where `values` is."""
    if world_size() == 1:
        return values.unsqueeze(0)
    sent = values.to(device()).contiguous()
    parts = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(parts, sent)
    return torch.stack(parts).to(values.device)


def from_rank_0(value: T) -> T:
    """What rank 0 gave; the values of the others are not looked at. For small Python objects."""
    shared = [value]
    if world_size() > 1:
        dist.broadcast_object_list(shared, src=0, device=device())
    return shared[0]


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
