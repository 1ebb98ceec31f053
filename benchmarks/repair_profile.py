"""Where the time of a repair step goes: PyTorch's profiler over one step of rank 0 of two, after the first two.

Text, batches and precision are those of `repair_step.py`, in micro-batches of two rows. Shares are of the step's wall time. Operations
of the main thread and of autograd's are summed by kind, without what they call; `elsewhere` is the rest: Python, the kernels of
`sani_dist.kernels` but for their matrix products, and waiting for the other rank. Profiling itself costs some per cent.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import harness
import notes
import repair_step
import torch
from torch.profiler import ProfilerActivity, profile

from sani_dist.config import RepairSettings
from sani_dist.corpus import PackedRows

CASES = (
    "matrix products",
    "attention",
    "optimizer",
    "copies, casts, zeros",
    "elementwise, reductions, norms",
    "elsewhere",
)
PROFILED = 3
CLAIMS: tuple[harness.Claim, ...] = ()


def compare(folder: Path, repeats: int) -> None:
    notes.prepare(folder, repair_step.DOCUMENTS)
    recorder = harness.Recorder("repair_profile")
    for _ in range(repeats):
        shares, *_ = harness.run_ranks(__file__, ["--model", str(folder)])
        for case in CASES:
            recorder.add(case, "share_of_step", shares[case])
        recorder.add("step", "seconds", shares["seconds"])
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    """One rank."""
    from sani_dist.engine import distributed
    from sani_dist.engine.checkpoint import State
    from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config
    from sani_dist.repair import Progress, train

    distributed.start(threads=None)
    model, path = notes.prepare(arguments.model, repair_step.DOCUMENTS)
    settings = RepairSettings(epochs=1, batch_rows=repair_step.BATCH_ROWS, micro_rows=2, checkpoint_every=10**9)
    ds_config = read_ds_config(None, torch.bfloat16)
    engine = Engine(load_sharded(model, ds_config, torch.bfloat16), ds_config)
    engine.for_training(settings)
    profiler = profile(activities=[ProfilerActivity.CPU])
    started, seconds = 0.0, 0.0

    def report(progress: Progress) -> None:
        nonlocal started, seconds
        if progress.step == PROFILED - 1:
            profiler.start()
            started = time.perf_counter()
        elif progress.step == PROFILED:
            seconds = time.perf_counter() - started
            profiler.stop()

    train(engine, [PackedRows(path)], None, settings, State(0, "benchmark"), report=report)
    spent = dict.fromkeys(CASES, 0.0)
    for operation in profiler.key_averages():
        if operation.key.startswith("aten::"):
            spent[kind(operation.key.removeprefix("aten::"))] += operation.self_cpu_time_total / 1e6
    spent["elsewhere"] = seconds - sum(spent.values())
    harness.report(arguments.result, {**{name: of / seconds for name, of in spent.items()}, "seconds": seconds})
    distributed.stop()


def kind(operation: str) -> str:
    """Which of `CASES` an operation of ATen belongs to."""
    if operation in ("mm", "addmm", "bmm", "addmm_", "baddbmm"):
        return "matrix products"
    if "attention" in operation:
        return "attention"
    if "adam" in operation:
        return "optimizer"
    if operation.startswith(("copy", "_to_copy", "clone", "fill", "zero", "cat", "empty", "new_", "contiguous")):
        return "copies, casts, zeros"
    return "elementwise, reductions, norms"


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=notes.DEFAULT_FOLDER, repeats=3)
