"""GPUs in the vendor's own machine of eight: what a plan has to know of them, and where it is written.

Peaks are dense bf16, since the figures that data sheets put first are for sparse matrices. Link speeds are of one direction.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class Gpu:
    """One GPU and its share of a node; bytes and bytes per second."""

    title: str
    memory: int
    flops: float
    node_link: int  # to the other GPUs of its node
    network: int  # its own network card
    host_link: int  # to the memory of its host
    host_memory: int  # of the whole node
    source: str
    per_node: int = 8


_DGX = "https://docs.nvidia.com/dgx"
GPUS = {
    "a100": Gpu(
        "A100 SXM 80 GB", 80 * GB, 312e12, 300 * GB, 25 * GB, 32 * GB, 2000 * GB,
        f"{_DGX}/dgxa100-user-guide/introduction-to-dgxa100.html, "
        "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf",
    ),
    "h100": Gpu(
        "H100 SXM 80 GB", 80 * GB, 989e12, 450 * GB, 50 * GB, 64 * GB, 2000 * GB,
        f"{_DGX}/dgxh100-user-guide/introduction-to-dgxh100.html, https://www.nvidia.com/en-us/data-center/h100",
    ),
    "h200": Gpu(
        "H200 SXM 141 GB", 141 * GB, 989e12, 450 * GB, 50 * GB, 64 * GB, 2000 * GB,
        f"{_DGX}/dgxh100-user-guide/introduction-to-dgxh100.html, https://www.nvidia.com/en-us/data-center/h200",
    ),
    "b200": Gpu(
        "B200 SXM 180 GB", 180 * GB, 2250e12, 900 * GB, 50 * GB, 64 * GB, 2000 * GB,
        f"{_DGX}/dgxb200-user-guide/introduction-to-dgxb200.html, https://www.nvidia.com/en-us/data-center/dgx-b200",
    ),
}  # fmt: skip
