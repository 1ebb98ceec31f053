"""What four times the text costs: one audit pass and one epoch of repair of SmolLM2-135M on two ranks.

Text and precision are those of `repair_step.py`, in global batches of four rows. Time is that of the slower rank, start-up excluded: the
second audit pass of a process, and the whole batches of repair after the first. Memory is the peak of the larger rank, loading included,
above its level after imports. `prepare.py` has the same for preparation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import harness
import notes
import repair_step
import torch

from sani_dist.config import RepairSettings
from sani_dist.corpus import PackedRows

FEW, MANY = 48, 192
STAGES = ("audit", "repair")
MICRO_ROWS = 2
CLAIMS = tuple(
    claim
    for stage in STAGES
    for claim in (
        harness.Claim("seconds_per_row", f"{stage} of {MANY}", f"{stage} of {FEW}", at_most=1.1),
        harness.Claim("seconds_per_row", f"{stage} of {MANY}", f"{stage} of {FEW}", at_least=0.9),
        harness.Claim("peak_rss_bytes", f"{stage} of {MANY}", f"{stage} of {FEW}", at_most=1.1),
    )
)


def compare(folder: Path, repeats: int) -> None:
    recorder = harness.Recorder("linear_cost")
    for _ in range(repeats):
        for documents in (FEW, MANY):
            notes.prepare(folder, documents)
            for stage in STAGES:
                arguments = ["--model", str(folder), "--case", stage, "--documents", str(documents)]
                ranks = harness.run_ranks(__file__, arguments)
                for metric in ("seconds_per_row", "peak_rss_bytes"):
                    recorder.add(f"{stage} of {documents}", metric, max(rank[metric] for rank in ranks))
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    """One rank."""
    import deepspeed  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from sani_dist.audit.scores import score
    from sani_dist.engine import distributed
    from sani_dist.engine.checkpoint import State
    from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config
    from sani_dist.repair import Progress, train

    distributed.start(threads=None)
    model, path = notes.prepare(arguments.model, arguments.documents)
    rows, ds_config = PackedRows(path), read_ds_config(None, torch.bfloat16)
    settings = RepairSettings(
        epochs=1, batch_rows=2 * MICRO_ROWS, micro_rows=MICRO_ROWS, learning_rate=repair_step.LEARNING_RATE, checkpoint_every=10**9
    )  # fmt: skip
    with harness.peak_memory() as peak:
        engine = Engine(load_sharded(model, ds_config, torch.bfloat16), ds_config)
        if arguments.case == "audit":
            engine.for_inference()
        else:
            engine.for_training(settings)
        seconds = [time.perf_counter()]
        if arguments.case == "audit":
            for _ in range(2):
                score(engine, rows, MICRO_ROWS)
                seconds.append(time.perf_counter())
            per_row = (seconds[2] - seconds[1]) / len(rows)
        else:

            def clock(progress: Progress) -> None:
                seconds.append(time.perf_counter())

            train(engine, [rows], None, settings, State(0, "benchmark"), report=clock)
            whole = len(rows) // settings.batch_rows  # a part of a batch takes a rank as long as a batch
            per_row = (seconds[whole] - seconds[1]) / ((whole - 1) * settings.batch_rows)
    harness.report(arguments.result, {"seconds_per_row": per_row, "peak_rss_bytes": peak["rss"]})
    distributed.stop()


if __name__ == "__main__":
    parser = harness.options(__doc__, model=notes.DEFAULT_FOLDER, repeats=3, cases=STAGES)
    parser.add_argument("--documents", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.result:
        measure(given)
    else:
        compare(given.model, given.repeats)
