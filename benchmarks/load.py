"""Loading a checkpoint of 2.2 GB into two ZeRO-3 ranks: byte ranges (`load_sharded`) against `from_pretrained`.

`from_pretrained` runs under a live `HfDeepSpeedConfig` of the same DeepSpeed JSON. Every measurement is two fresh processes; the page
cache is warm for both. Time is that of the slower rank, between two barriers; memory is that of the larger rank, above
its level after imports and after joining the process group. `rss` counts resident pages of memory-mapped files,
`anonymous` does not. Both ways must give the same shards, by hash.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import checkpoint
import harness
import torch

CASES = ("load_sharded", "from_pretrained")
CLAIMS = (
    harness.Claim("peak_rss_bytes", *CASES, at_most=0.6),
    harness.Claim("peak_anonymous_bytes", *CASES, at_most=0.6),
    harness.Claim("seconds", *CASES, at_most=0.7),
)


def compare(model: Path, repeats: int) -> None:
    checkpoint.prepare(model)
    recorder = harness.Recorder("load")
    shards = set()
    for _ in range(repeats):
        for case in CASES:
            ranks = harness.run_ranks(__file__, ["--model", str(model), "--case", case])
            for metric in ("seconds", "peak_rss_bytes", "peak_anonymous_bytes"):
                recorder.add(case, metric, max(rank[metric] for rank in ranks))
            shards.add(tuple(rank["sha256"] for rank in ranks))
    if len(shards) != 1:
        raise SystemExit(f"the shards differ between cases or repeats: {shards}")
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    """One rank of one measurement."""
    # Everything that either way imports on first use, so that neither is charged for it.
    import accelerate  # noqa: F401
    import deepspeed  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    from sani_dist.engine import distributed
    from sani_dist.engine.zero3 import load_sharded, read_ds_config

    distributed.start(threads=None)
    ds_config = read_ds_config(None, checkpoint.DTYPE)
    distributed.barrier()
    with harness.peak_memory() as peak:
        start = time.perf_counter()
        if arguments.case == "load_sharded":
            model = load_sharded(arguments.model, ds_config, checkpoint.DTYPE)
        else:
            keep_alive = HfDeepSpeedConfig(ds_config)
            model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=checkpoint.DTYPE, local_files_only=True)
            del keep_alive
        distributed.barrier()
        seconds = time.perf_counter() - start
    measured = {"seconds": seconds, **{f"peak_{kind}_bytes": value for kind, value in peak.items()}}
    harness.report(arguments.result, {**measured, "sha256": shards_sha256(model)})
    distributed.stop()


def shards_sha256(model: torch.nn.Module) -> str:
    """Hash of the names and values of this rank's shards."""
    from sani_dist.engine.shards import local_shards

    digest = hashlib.sha256()
    for live in local_shards(model):
        digest.update(live.shard.name.encode() + live.values.cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=checkpoint.DEFAULT_FOLDER, repeats=5, cases=CASES)
