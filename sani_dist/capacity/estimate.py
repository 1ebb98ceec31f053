"""ZeRO-3 arithmetic: where the bytes of a run lie under a DeepSpeed file, and how long a step takes.

P parameters over W ranks; b bytes of a weight. Each rank owns S = sum of ceil(numel / W) elements of every kind.

    weights b S, gradients 4 S, masters and two moments 12 S (in fp32 too, where DeepSpeed means to save the masters and does not)
    at the step, gradients of one sub-group once more
    gathered: at most `stage3_max_live_parameters` and what is fetched ahead; hpZ keeps P / group more

What was allocated on two real ranks: tests/distributed/test_capacity.py. Times were compared with nothing: no GPU was there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum

from sani_dist.capacity.hardware import Gpu
from sani_dist.capacity.model import ModelShape
from sani_dist.kernels.masked_ce import GPU_MAX_BYTES

STATE_BYTES, GRADIENT_BYTES = 12, 4
# Of a GPU's memory, what is left beside CUDA itself, NCCL and fragmentation; of a host's, beside all else that runs there.
USABLE, USABLE_HOST = 0.92, 0.9
# Shares of the peaks that training reaches: matrix products, and links.
MATRIX_SHARE, LINK_SHARE = 0.4, 0.7
# Read master, moments, gradient; write master, moments and weight: bytes of one element. Two sockets of DDR5-4800.
OPTIMIZER_BYTES, HOST_BYTES_PER_SECOND = 30, 600e9


@dataclass(frozen=True)
class Job:
    """On what a model is trained."""

    gpu: Gpu
    gpus: int
    batch_rows: int

    @property
    def nodes(self) -> int:
        return math.ceil(self.gpus / self.gpu.per_node)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one rank by what they hold, on its GPU, on its host and on NVMe; seconds of a step, at best and at worst."""

    name: str
    device: dict[str, int]
    host: dict[str, int]
    nvme: int
    fits: bool
    why_not: str
    seconds: tuple[float, float] | None  # None: depends on the disks


def estimate(shape: ModelShape, job: Job, ds_config: Path) -> Estimate:
    """What a DeepSpeed file makes of a model on some GPUs."""
    zero = DeepSpeedZeroConfig(**json.loads(ds_config.read_text())["zero_optimization"])
    device, host, nvme = memory(shape, zero, job.gpus)
    per_host = sum(host.values()) * min(job.gpus, job.gpu.per_node)
    why_not = ""
    if (group := zero.zero_hpz_partition_size) > 1 and job.gpus % min(group, job.gpus):
        why_not = f"hpZ's groups of {group} do not divide {job.gpus} GPUs"
    elif sum(device.values()) > USABLE * job.gpu.memory:
        why_not = f"{sum(device.values()) / 1e9:.1f} GB of {USABLE * job.gpu.memory / 1e9:.1f} usable"
    elif per_host > USABLE_HOST * job.gpu.host_memory:
        why_not = f"host: {per_host / 1e9:,.0f} GB of {USABLE_HOST * job.gpu.host_memory / 1e9:,.0f} usable"
    return Estimate(
        ds_config.name, device, host, nvme, not why_not, why_not, None if nvme else seconds(shape, zero, job)
    )


def memory(shape: ModelShape, zero: DeepSpeedZeroConfig, ranks: int) -> tuple[dict[str, int], dict[str, int], int]:
    """Bytes of one rank: on its device, in host memory, on NVMe."""
    group = min(zero.zero_hpz_partition_size, ranks)
    size = shape.dtype.itemsize
    owned = sum(math.ceil(numel / ranks) for numel in shape.numels)
    largest, total = max(shape.numels), shape.parameters
    weights, states = _device(zero.offload_param), _device(zero.offload_optimizer)
    step = min(owned, zero.sub_group_size + math.ceil(largest / ranks))
    live = min(total, max(zero.max_live_parameters, largest) + zero.prefetch_bucket_size)
    rows = max(1, min(shape.tokens, GPU_MAX_BYTES // (shape.vocabulary * 4)))
    projection = shape.vocabulary * shape.hidden

    device = {
        "weights": size * owned if weights == "none" else 0,
        "gradients": GRADIENT_BYTES * owned if states == "none" else 0,
        "masters and moments": STATE_BYTES * owned if states == "none" else 0,
        "gathered weights": size * live + (size * math.ceil(total / group) if group > 1 else 0),
        # The larger of two moments: whole gradients on their way to their owners, or the step of a sub-group.
        "buffers": size * zero.reduce_bucket_size
        + max(size * largest, GRADIENT_BYTES * step if states == "none" else 0),
        "activations": shape.activations,
        "logits": size * rows * shape.vocabulary + projection * (size if rows == shape.tokens else size + 4),
    }
    host = {
        "weights": size * owned if weights != "none" else 0,
        "gradients": GRADIENT_BYTES * owned if states != "none" else 0,
        "masters and moments": STATE_BYTES * owned if states == "cpu" else 0,
        "buffers": 0
        if states == "none"
        else 4 * owned
        if states == "cpu"
        else 4 * step * zero.offload_optimizer.buffer_count,
    }
    return device, host, STATE_BYTES * owned if states == "nvme" else 0


def seconds(shape: ModelShape, zero: DeepSpeedZeroConfig, job: Job) -> tuple[float, float]:
    """Of one step: communication wholly behind computing, and wholly beside it."""
    gpu, size = job.gpu, shape.dtype.itemsize
    batches = math.ceil(job.batch_rows / (shape.micro_rows * job.gpus))
    computing = batches * shape.tokens * training_flops(shape) / (MATRIX_SHARE * gpu.flops)
    every = size * shape.parameters * (job.gpus - 1) / job.gpus / LINK_SHARE
    inside = every / gpu.node_link
    # What enters a node comes through all of its network cards.
    across = max(inside, every / (gpu.network * gpu.per_node)) if job.nodes > 1 else inside
    backward = inside if 1 < zero.zero_hpz_partition_size <= gpu.per_node else across
    talking = batches * (across + backward + across)  # gathered twice, gradients scattered once
    owned = shape.parameters / job.gpus
    moved = 0.0
    if _device(zero.offload_param) != "none":
        moved += batches * 2 * size * owned / (LINK_SHARE * gpu.host_link)
    if _device(zero.offload_optimizer) != "none":
        moved += batches * GRADIENT_BYTES * owned / (LINK_SHARE * gpu.host_link)
        moved += OPTIMIZER_BYTES * owned * min(job.gpus, gpu.per_node) / (LINK_SHARE * HOST_BYTES_PER_SECOND)
    return max(computing, talking) + moved, computing + talking + moved


def training_flops(shape: ModelShape) -> int:
    """Of one token: forward, and twice as much backward; a multiplication and an addition of each parameter, and attention over the row."""
    return 6 * shape.multiplied + 12 * shape.layers * shape.hidden * shape.row_length


def _device(offload: Any) -> str:
    return "none" if offload is None else OffloadDeviceEnum(offload.device).value
