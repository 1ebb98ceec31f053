"""Repair of the last 8 of SmolLM2-135M's 30 layers, two ranks: hidden states of the others kept on disk, against training all layers.

Text, batches and precision are those of `repair_step.py`, objective `mask`; embedding, output projection and last norm are frozen with the
trunk. Two epochs, the second is measured: the pass over the frozen layers, before the first, is not in it and stands for itself, as
`trunk_seconds`. Memory is the peak of the larger rank, loading included. Micro-batches are of 2 rows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import harness
import notes
import repair_step

from sani_dist.config import LastLayers, RepairSettings
from sani_dist.corpus import PackedRows

LAYERS = 8
CASES = ("all layers", f"last {LAYERS}")
CLAIMS = (harness.Claim("seconds", *CASES, at_least=2.5),)


def compare(folder: Path, repeats: int) -> None:
    notes.prepare(folder, repair_step.DOCUMENTS)
    recorder = harness.Recorder("frozen_trunk")
    for _ in range(repeats):
        for case in CASES:
            ranks = harness.run_ranks(__file__, ["--model", str(folder), "--case", case])
            for metric in ("seconds", *(m for m in ranks[0] if m.endswith(("_seconds", "_bytes")))):
                recorder.add(case, metric, max(rank[metric] for rank in ranks))
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    """One rank of one measurement."""
    import deepspeed  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from sani_dist.engine import distributed

    distributed.start(threads=None)
    model, path = notes.prepare(arguments.model, repair_step.DOCUMENTS)
    settings = RepairSettings(
        epochs=2, batch_rows=repair_step.BATCH_ROWS, micro_rows=2, learning_rate=repair_step.LEARNING_RATE, schedule="constant",
        warmup=0, checkpoint_every=10**9, trainable="all" if arguments.case == CASES[0] else LastLayers(last=LAYERS),
    )  # fmt: skip
    with harness.peak_memory() as peak:
        found = repair_step.ours(model, PackedRows(path), settings, arguments.result)
    harness.report(arguments.result, {**found, **{f"peak_{kind}_bytes": value for kind, value in peak.items()}})
    distributed.stop()


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=notes.DEFAULT_FOLDER, repeats=5, cases=CASES)
