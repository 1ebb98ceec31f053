"""A plan as a person reads it: in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from sani_dist.capacity.estimate import Estimate, Job
from sani_dist.capacity.model import ModelShape
from sani_dist.engine.zero3 import DEFAULT_DS_CONFIG
from sani_dist.messages import plain


def supplied() -> list[Path]:
    """The DeepSpeed files that come with the package, but for the one without GPUs."""
    return sorted(p for p in DEFAULT_DS_CONFIG.parent.glob("*.json") if p.name != "zero3_cpu.json")


def show(console: Console, shape: ModelShape, job: Job, estimates: Sequence[Estimate], tokens: float) -> None:
    """Print memory by DeepSpeed file, which files fit, and the time of those that do."""
    console.print(f"model   {plain(shape.architecture)}, {shape.parameters:,} parameters, {_dtype(shape)}")
    console.print(f"on      {job.gpus} x {job.gpu.title}, {job.nodes} node{'s' * (job.nodes > 1)}")
    console.print(
        f"step    {job.batch_rows} rows of {shape.row_length} tokens, {shape.micro_rows} at a time on each GPU"
    )
    console.print(memory_table(job, estimates))
    for found in estimates:
        if not found.fits:
            console.print(f"{plain(found.name)} does not fit: {plain(found.why_not)}", soft_wrap=True)
    for found in estimates:
        if found.fits:
            console.print(f"{plain(found.name)} fits: {_time(shape, job, found, tokens)}", soft_wrap=True)
    console.print("Planned from arithmetic, not measured; times assume 40 % of the peak and 70 % of the links.")


def memory_table(job: Job, estimates: Sequence[Estimate]) -> Table:
    """GB of one GPU, of the host and of the disks of a node."""
    table = Table(title="GB of one GPU", box=box.SIMPLE_HEAD)
    table.add_column("")
    for found in estimates:
        table.add_column(short(found.name), justify="right")
    for part in estimates[0].device:
        table.add_row(part, *(gigabytes(found.device[part]) for found in estimates))
    table.add_section()
    table.add_row("all", *(gigabytes(sum(found.device.values())) for found in estimates), style="bold")
    ranks = min(job.gpus, job.gpu.per_node)
    table.add_row("host of a node", *(gigabytes(sum(found.host.values()) * ranks) for found in estimates))
    table.add_row("NVMe of a node", *(gigabytes(found.nvme * ranks) for found in estimates))
    return table


def short(name: str) -> str:
    """zero3_cpu_offload.json: cpu offload."""
    return name.removesuffix(".json").removeprefix("zero3_").replace("_", " ")


def gigabytes(count: int) -> str:
    return "-" if not count else f"{count / 1e9:.1f}" if count < 100e9 else f"{count / 1e9:,.0f}"


def gpu_hours(shape: ModelShape, job: Job, seconds: float, tokens: float) -> float:
    """Of a pass over so many tokens."""
    return tokens / (job.batch_rows * shape.row_length) * seconds * job.gpus / 3600


def _time(shape: ModelShape, job: Job, found: Estimate, tokens: float) -> str:
    if found.seconds is None:
        return "its time depends on the disks"
    low, high = found.seconds
    hours = [gpu_hours(shape, job, seconds, tokens) for seconds in found.seconds]
    return f"{low:.2f} to {high:.2f} s a step, {hours[0]:,.1f} to {hours[1]:,.1f} GPU-hours for {tokens / 1e6:,.0f} million tokens"


def _dtype(shape: ModelShape) -> str:
    return str(shape.dtype).removeprefix("torch.")
