"""On what ranks compute: GPUs, or processors. Nobody who has GPUs, or asks for them, is given processors without a word."""

from __future__ import annotations

import os
from collections.abc import Mapping
from glob import glob
from typing import Any, Literal

from sani_dist.errors import InputError

Device = Literal["auto", "cuda", "cpu"]

# Where the driver of NVIDIA shows a GPU. A container that was started without NVIDIA's runtime sees the second place only.
PLACES = ("/dev/nvidia[0-9]*", "/proc/driver/nvidia/gpus/*")


def on_gpu() -> bool:
    """Whether this process computes on a GPU: there is one, and neither a user nor `choose` told DeepSpeed another accelerator."""
    import torch

    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"


def choose(device: Device, asked: bool = False) -> bool:
    """Settle for this process and those it starts whether ranks compute on GPUs; returns it.

    `asked`: the settings ask for GPUs elsewhere. Raises InputError, in one line with the reason, when GPUs are asked for or there, but
    cannot be used.
    """
    if device == "auto" and not asked and (_hidden() or not present()):
        device = "cuda" if on_gpu() else "cpu"
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        return False
    reason = why_not()
    if reason is not None:
        why = "GPUs are asked for" if device == "cuda" or asked else "this machine has GPUs"
        raise InputError(f"cluster.device: {why}, but {reason}; for processors set cluster.device=cpu")
    if os.environ.get("DS_ACCELERATOR") == "cpu":  # set where GPUs are asked for, it would be a second opinion
        del os.environ["DS_ACCELERATOR"]
    return True


def check_ranks(device: Device, ranks: int) -> None:
    """Raises InputError when so many ranks cannot be started on this machine, each with a GPU of its own."""
    if not choose(device):
        return
    count = gpus()
    if ranks > count:
        raise InputError(
            f"cluster.workers: {ranks} ranks, but this machine has {_number(count)}, and each rank needs its own; "
            f"set cluster.workers={count}, or cluster.device=cpu"
        )


def check_offload(zero: Mapping[str, Any]) -> None:
    """Raises InputError when a run on GPUs offloads to NVMe and DeepSpeed cannot compile what it does that with. `zero`: the section
    `zero_optimization` of its file."""
    from torch.utils.cpp_extension import CUDA_HOME

    if (zero.get("offload_optimizer") or {}).get("device") == "nvme" and on_gpu() and CUDA_HOME is None:
        raise InputError(
            "cluster.ds_config: to offload to NVMe DeepSpeed compiles its asynchronous I/O, on a machine with GPUs with the CUDA toolkit; "
            "install that of torch's CUDA and set CUDA_HOME, or offload to the CPU (zero3_cpu_offload.json)"
        )


def index_of(local_rank: int) -> int:
    """The number of this rank's GPU among those that it sees. Raises InputError when there is none for it."""
    count = gpus()
    if count == 1:  # Slurm's --gpus-per-task=1 shows each rank its own; NCCL says so if two ranks share one
        return 0
    if local_rank >= count:
        raise InputError(
            f"rank {local_rank} of this host has no GPU: {_number(count)} there; start fewer ranks, or set cluster.device=cpu"
        )
    return local_rank


def present() -> bool:
    """Whether the machine has a GPU of NVIDIA, of use or not."""
    return any(glob(place) for place in PLACES)


def gpus() -> int:
    """How many GPUs this process sees."""
    import torch

    return torch.cuda.device_count()


def why_not() -> str | None:
    """Why CUDA cannot be used; None when it can."""
    import torch

    if torch.cuda.is_available():
        return None
    if not present():
        return "no GPU of NVIDIA is there"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA: reinstall it on this machine, with constraints.txt"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().splitlines()[0].split(". ")[0].rstrip(".")
        hint = (
            "; in a container, start it with NVIDIA's runtime (docker run --gpus all)"
            if "no NVIDIA driver" in said
            else ""
        )
        return f"CUDA {torch.version.cuda} of torch {torch.__version__} cannot use them: {said}{hint}"
    return f"CUDA sees none of them (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')})"


def _hidden() -> bool:
    """Whether the user has hidden the GPUs from this process, or told DeepSpeed to leave them alone."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or os.environ.get("DS_ACCELERATOR", "cuda") != "cuda"


def _number(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"
