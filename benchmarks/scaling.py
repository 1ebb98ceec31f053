"""Repair of SmolLM2-135M on one to four ranks of one machine: time, memory, and bytes communicated against the formula.

Text and batches are those of `repair_step.py`, in micro-batches of one row, so that four ranks still have two each. Time is the median
of the steps of one epoch but its first and last, on the slowest rank; the ranks share the cores, so more ranks than cores show what
oversubscription does. Bytes are what a rank hands to DeepSpeed's operations in the last step, by DeepSpeed's own log; they must be
within 5 % of the formula in docs/communication.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import harness
import notes
import repair_step
import torch

from sani_dist.config import RepairSettings
from sani_dist.corpus import PackedRows
from sani_dist.engine.communication import GATHER, REDUCE

RANKS = (1, 2, 3, 4)
SAME_BYTES = 0.05
CLAIMS: tuple[harness.Claim, ...] = ()


def compare(folder: Path, repeats: int) -> None:
    notes.prepare(folder, repair_step.DOCUMENTS)
    recorder = harness.Recorder("scaling")
    for repeat in range(repeats):
        for count in RANKS:
            ranks = harness.run_ranks(__file__, ["--model", str(folder)], count)
            case = f"{count} ranks"
            for metric in ("seconds", "peak_rss_bytes", "peak_anonymous_bytes"):
                recorder.add(case, metric, max(rank[metric] for rank in ranks))
            recorder.add(case, "learnable_tokens_per_second", ranks[0]["learnable"] / max(r["seconds"] for r in ranks))
            for operation in (GATHER, REDUCE):
                check(case, operation, ranks)
                if repeat == 0:
                    recorder.add(case, f"{operation}_bytes", ranks[0]["logged"].get(operation, 0))
    recorder.save(CLAIMS)


def check(case: str, operation: str, ranks: list[dict[str, Any]]) -> None:
    """Ends the benchmark where the log and the formula differ. One rank alone communicates nothing worth logging."""
    for rank in ranks if len(ranks) > 1 else []:
        logged, expected = rank["logged"].get(operation, 0), rank["expected"][operation]
        if abs(logged / expected - 1) > SAME_BYTES:
            raise SystemExit(f"{case}: {operation} {logged} bytes, by the formula {expected}")


def measure(arguments: argparse.Namespace) -> None:
    """One rank."""
    from sani_dist.engine import distributed
    from sani_dist.engine.checkpoint import State
    from sani_dist.engine.communication import logged, step_bytes
    from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config
    from sani_dist.repair import Progress, train
    from sani_dist.repair.schedule import Schedule

    distributed.start(threads=None)
    model, path = notes.prepare(arguments.model, repair_step.DOCUMENTS)
    rows = PackedRows(path)
    settings = RepairSettings(epochs=1, batch_rows=repair_step.BATCH_ROWS, micro_rows=1, checkpoint_every=10**9)
    last = Schedule(settings, [rows], None).steps
    ds_config = read_ds_config(None, torch.bfloat16)
    steps: list[Progress] = []
    seconds: list[float] = []
    log = logged()
    found: dict[str, int] = {}
    with harness.peak_memory() as peak:
        engine = Engine(load_sharded(model, ds_config, torch.bfloat16), ds_config)
        engine.for_training(settings)
        started = time.perf_counter()

        def report(progress: Progress) -> None:
            nonlocal started, found
            seconds.append(time.perf_counter() - started)
            steps.append(progress)
            if progress.step == last - 1:
                found = log.__enter__()
            started = time.perf_counter()

        train(engine, [rows], None, settings, State(0, "benchmark"), report=report)
        log.__exit__(None, None, None)
    sizes = [parameter.ds_numel for parameter in engine.model.parameters()]
    expected = step_bytes(
        sizes,
        sizes,
        ranks=distributed.world_size(),
        micro_batches=engine.accumulation,
        weight_bytes=2,
        persistent=10**5,
    )
    harness.report(
        arguments.result,
        {
            "seconds": statistics.median(seconds[1:-1]), "logged": found, "expected": expected,
            "learnable": statistics.median(progress.learnable_tokens for progress in steps[1:-1]),
            **{f"peak_{kind}_bytes": value for kind, value in peak.items()},
        },
    )  # fmt: skip
    distributed.stop()


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=notes.DEFAULT_FOLDER, repeats=3)
