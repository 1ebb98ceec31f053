"""What this machine has, against what a run needs."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape

from sani_dist.config import Config
from sani_dist.errors import InputError

PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "datasets", "ray", "presidio-analyzer")
# DeepSpeed ops that a run uses: on CPU the shared-memory collectives, with offloading to NVMe asynchronous I/O.
OPS = {"deepspeed_shm_comm": "ShareMemCommBuilder", "async_io": "AsyncIOBuilder"}

NAME_WIDTH = 22
TALK_SECONDS = 180
_TALK = """
import torch
from sani_dist.engine import distributed
distributed.start(threads=1)
total = distributed.sum_over_ranks(torch.ones(1))
assert int(total) == 2
distributed.stop()
"""


def examine(console: Console, config: Config | None) -> bool:
    """Print the findings; returns whether everything a run must have is there."""
    good = True

    def line(name: str, text: str, ok: bool | None = True) -> None:
        nonlocal good
        good = good and ok is not False
        mark = {True: "[green]ok[/green]  ", False: "[red]bad[/red] ", None: "[yellow]-[/yellow]   "}[ok]
        console.print(f"{mark}{name:<{NAME_WIDTH}}{escape(text)}", soft_wrap=True, highlight=False)

    line("python", platform.python_version(), sys.version_info >= (3, 11))
    for package in PACKAGES:
        try:
            line(package, version(package))
        except PackageNotFoundError:
            optional = package == "presidio-analyzer"
            line(
                package,
                "not installed" + (": pip install 'sani_dist[presidio]'" if optional else ""),
                None if optional else False,
            )
    # Before DeepSpeed, which importing it tells that there is no GPU.
    from sani_dist.engine.distributed import has_bfloat16

    line("accelerator", *_accelerator(config))
    native = has_bfloat16()
    line(
        "bfloat16",
        "computed in hardware" if native else "only emulated: with `model.dtype: float32` ranks are much faster here",
        True if native else None,
    )
    compiler = shutil.which("g++") or shutil.which("c++")
    line("C++ compiler", compiler or "none: DeepSpeed cannot build its ops; install g++", compiler is not None)
    for name, builder in OPS.items():
        compatible = _op_is_compatible(builder)
        line(
            f"op {name}",
            "builds when first used" if compatible else "does not build here",
            True if compatible else None,
        )
    _resources(line, config)
    line("two ranks can talk", *_two_ranks_talk())
    return good


def _accelerator(config: Config | None) -> tuple[str, bool | None]:
    """On what ranks would run, or why they could not."""
    import torch

    from sani_dist.engine import devices

    try:
        if config is not None and config.cluster.launcher == "local":
            devices.check_ranks(config.cluster.device, config.cluster.most_workers)
        on_gpus = devices.choose("auto" if config is None else config.cluster.device)
    except InputError as error:
        return str(error), False
    if not on_gpus:
        return f"none: ranks run on {os.cpu_count()} CPU cores", None
    return ", ".join(torch.cuda.get_device_name(i) for i in range(devices.gpus())), True


def _op_is_compatible(builder: str) -> bool:
    from deepspeed.accelerator import get_accelerator

    found = get_accelerator().create_op_builder(builder)
    return found is not None and bool(found.is_compatible(verbose=False))


def _resources(line: object, config: Config | None) -> None:
    from sani_dist.stages import preflight

    assert callable(line)
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(Path.cwd()).free
    if config is None:
        line("free memory", f"{memory / 1e9:.1f} GB")
        line("free disk", f"{disk / 1e9:.1f} GB")
        return
    needs = preflight.check(config)
    line(*_memory(config, needs["training_bytes"], memory))
    line(
        "free disk",
        f"{disk / 1e9:.1f} GB, the run needs up to {needs['disk_bytes'] / 1e9:.1f} GB",
        disk > needs["disk_bytes"],
    )


def _memory(config: Config, needed: int, host: int) -> tuple[str, str, bool]:
    """Where weights, gradients, masters and moments lie, against what is free there."""
    import torch

    from sani_dist.engine import devices
    from sani_dist.engine.zero3 import read_ds_config

    zero = read_ds_config(config.cluster.ds_config, torch.float32)["zero_optimization"]
    offloads = any(
        zero.get(part, {}).get("device", "none") != "none" for part in ("offload_param", "offload_optimizer")
    )
    if not devices.on_gpu() or offloads:
        text = f"{host / 1e9:.1f} GB, the run needs about {needed / 1e9:.1f} GB over all workers"
        return "free memory", text, host > needed
    each, free = needed / config.cluster.most_workers, min(torch.cuda.mem_get_info(i)[0] for i in range(devices.gpus()))
    text = f"{free / 1e9:.1f} GB free, the run needs {each / 1e9:.1f} GB on each, and activations (`sani-dist plan`)"
    return "GPU memory", text, free > each


def _two_ranks_talk() -> tuple[str, bool]:
    from sani_dist.engine import devices
    from sani_dist.orchestrate.local import environment, free_port

    if devices.on_gpu() and devices.gpus() < 2:
        return "not tried: they need a GPU each, and one is there", True
    port = free_port()
    with contextlib.ExitStack() as stack:
        # Files, since a rank that fills a pipe nobody reads would wait for ever.
        errors = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", _TALK], env=environment(rank, 2, port), stdout=subprocess.DEVNULL, stderr=error
            )
            for rank, error in enumerate(errors)
        ]
        try:
            answered = _ended(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        if not answered:
            return f"no answer in {TALK_SECONDS} s: check firewall and /etc/hosts", False
        # First the one that failed by itself: a positive code, where that of a rank killed for its sake is negative.
        failed = sorted((rank for rank in range(2) if ranks[rank].returncode), key=lambda rank: -ranks[rank].returncode)
        if not failed:
            return "yes", True
        errors[failed[0]].seek(0)
        last = errors[failed[0]].read().decode(errors="replace").strip().splitlines()
        return f"no: {last[-1] if last else 'a rank failed'}", False


def _ended(ranks: list[subprocess.Popen[bytes]]) -> bool:
    """Wait until both have ended, or one has failed, since the other would wait for it. False: neither in time."""
    end = time.monotonic() + TALK_SECONDS
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
