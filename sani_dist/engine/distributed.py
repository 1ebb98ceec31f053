"""The process group of a run: set-up, and the collectives that stages need beside DeepSpeed's own."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sani_dist.engine.deepspeed_internals import import_deepspeed
from sani_dist.engine.devices import index_of, on_gpu
from sani_dist.errors import InputError, RunError

T = TypeVar("T")

_timeout = timedelta(minutes=30)
_local_rank = 0


def start(threads: int | None, timeout_seconds: int = 1800, *, deterministic: bool = False) -> None:
    """Join the process group that the launcher described in RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR/PORT.

    `threads`: CPU threads of this process; launchers set OMP_NUM_THREADS differently, and sums depend on it.
    `timeout_seconds`: how long a rank waits for others, here and in a collective.
    `deterministic`: two runs on the same GPUs give the same bits; on CPUs they do anyway.
    Raises InputError when the launcher's variables contradict each other, RunError when DeepSpeed or torch see other ones.
    """
    # torch 2.13 warns once for every collective DeepSpeed 0.19.8 starts on tensors it considers deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    check_launcher(os.environ)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "29500")

    import_deepspeed()
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // ranks_of_this_host()))
    global _timeout
    _timeout = timedelta(seconds=timeout_seconds)
    global _local_rank
    _local_rank = int(os.environ["LOCAL_RANK"])
    backend = "nccl" if on_gpu() else "gloo"
    if on_gpu():
        # DeepSpeed takes LOCAL_RANK for the number of the device.
        os.environ["LOCAL_RANK"] = str(index_of(_local_rank))
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
        if deterministic:
            compute_deterministically()
    try:
        deepspeed.init_distributed(dist_backend=backend, timeout=_timeout, verbose=False)
        if backend == "nccl":
            barrier()  # what NCCL cannot do it finds out at the first collective
    except dist.DistBackendError as error:
        raise RunError(failure_of_nccl(str(error))) from error
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


def failure_of_nccl(said: str) -> str:
    """One line about an error of NCCL at the start, when all ranks have come: `said` is torch's text, of several lines."""
    last = said.split("Last error:")[-1].strip().splitlines() or [""]
    what = last[0].strip() if "Last error:" in said else said.strip().splitlines()[0]
    if "Duplicate GPU" in said:
        then = "start at most as many ranks on a host as it has GPUs"
    elif any(sign in said for sign in ("ibv_", "NET/IB", "Infiniband", "InfiniBand")):
        then = "the InfiniBand of a host is not as NCCL wants it (ibstat, ulimit -l); NCCL_IB_DISABLE=1 goes without, slowly"
    elif "ncclUnhandledCudaError" in said or "Cuda failure" in said or "driver" in said.lower():
        then = "CUDA or its driver failed on a host: compare nvidia-smi on all of them"
    elif "ncclRemoteError" in said or "socket" in last[0].lower() or "Connection" in last[0]:
        then = "NCCL uses another network than the start: set NCCL_SOCKET_IFNAME to an interface by which all hosts reach each other"
    else:
        then = "NCCL_DEBUG=INFO has it say more"
    return f"all ranks came, but NCCL did not start: {what}; {then}"


def compute_deterministically() -> None:
    """On GPUs, take no operation that adds in an order of its own; torch raises RuntimeError where it has no other.

    Before the first product: cuBLAS reads its workspace from the environment once.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Strict, since with warnings alone the backward of memory-efficient attention would go on adding atomically.
    torch.use_deterministic_algorithms(True)
    filling: Any = torch.utils.deterministic
    filling.fill_uninitialized_memory = False  # a write of every new tensor, for code that reads what nobody wrote
    torch.backends.cuda.enable_cudnn_sdp(False)  # whose backward adds atomically
    torch.backends.cudnn.benchmark = False


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
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def has_bfloat16() -> bool:
    """Whether `device()` has instructions for bfloat16. Without them it is emulated: a matrix product took four times as long as in
    float32 on a Xeon with AVX-512 alone."""
    if on_gpu():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def peak_memory_bytes() -> int:
    """Most that this process has held until now: what torch allocated on its GPU; without one, what was resident."""
    if on_gpu():
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


def send(values: torch.Tensor, to: int) -> None:
    """Hand a tensor to rank `to`, which calls `receive`."""
    dist.send(values.to(device()).contiguous(), to)


def receive(values: torch.Tensor, source: int) -> torch.Tensor:
    """Fill `values` with what rank `source` sends: as many, of the same dtype."""
    arrived = values if values.device == device() else torch.empty(values.shape, dtype=values.dtype, device=device())
    dist.recv(arrived, source)
    return values if arrived is values else values.copy_(arrived)


def hosts() -> list[int]:
    """The host of each rank, in rank order, as numbers from 0. Every rank calls this.

    Ranks that share a name are on one host, but for two with the same LOCAL_RANK: whatever their hosts are called, those are two.
    """
    name = int.from_bytes(hashlib.sha256(socket.gethostname().encode()).digest()[:7], "little")
    told = gather_in_rank_order(torch.tensor([name, _local_rank])).tolist()
    seen: Counter[tuple[int, int]] = Counter()
    numbers: dict[tuple[int, int], int] = {}
    found = []
    for host, local_rank in told:
        found.append(numbers.setdefault((host, seen[host, local_rank]), len(numbers)))
        seen[host, local_rank] += 1
    return found


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
