"""Throughput of a run on any machine or cluster, from its run folder: tokens/s of a GPU, model FLOPs utilisation, memory.

    python launch/ray_submit.py hospital.yaml --out /shared/run --set cluster.workers=64      (or launch/deepspeed.sh, sbatch ...)
    python benchmarks/cluster.py /shared/run --gpu h100

The run reports each step; the first fifth of them is left out, and the medians of the rest count. Tokens are those of whole rows. FLOPs of
a token are six times the parameters that it is multiplied with, and attention over the row, as in `sani-dist plan`; the peak is that of
dense bf16. Memory is the most that rank 0 had allocated on its GPU, without one the most that was resident. `--gpu none`: no utilisation.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import harness

from sani_dist.capacity.estimate import training_flops
from sani_dist.capacity.hardware import GPUS
from sani_dist.capacity.model import read_shape
from sani_dist.errors import InputError
from sani_dist.metrics import read_stage
from sani_dist.run import Run

LEFT_OUT = 0.2
NAME = "cluster"
CLAIMS: tuple[harness.Claim, ...] = ()


def record(run: Run, gpu: str) -> harness.Recorder:
    """The rows of one run. Raises InputError when it has not repaired."""
    steps = read_stage(run.path("metrics.jsonl"), "repair")
    steps = steps[int(LEFT_OUT * len(steps)) :]
    if not steps:
        raise InputError(f"{run.folder} has not repaired")
    config, ranks = run.config, steps[-1]["ranks"]
    device = f"{ranks} x {GPUS[gpu].title if gpu in GPUS else 'CPU'}"
    measured = ("tokens_per_second", "learnable_tokens_per_second", "peak_memory_bytes")
    found = {name: statistics.median(step[name] for step in steps) for name in measured}
    recorder, case = harness.Recorder(NAME, device), f"{config.model.path.name} on {device}"
    recorder.add(case, "tokens_per_second_of_a_rank", found["tokens_per_second"] / ranks)
    recorder.add(case, "learnable_tokens_per_second", found["learnable_tokens_per_second"])
    recorder.add(case, "peak_memory_bytes", found["peak_memory_bytes"])
    if gpu in GPUS:
        shape = read_shape(config.model.path, config.corpus.row_length, config.repair.micro_rows)
        used = found["tokens_per_second"] / ranks * training_flops(shape) / GPUS[gpu].flops
        recorder.add(case, "model_flops_utilisation", used)
    return recorder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--gpu", choices=(*GPUS, "none"), required=True)
    given = parser.parse_args()
    record(Run.open(given.run), given.gpu).save(CLAIMS)
