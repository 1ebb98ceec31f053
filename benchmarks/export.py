"""Writing a sharded model of 2.2 GB as a Hugging Face folder from two ranks: byte ranges (`export`) against gathering it on rank 0.

The alternative is what Accelerate and `Trainer` do under ZeRO-3: DeepSpeed gathers a state dict on rank 0 and `save_pretrained` writes it,
in files of the same size. Ours also calls fsync and hashes what it wrote. Every measurement is two fresh processes. Time is that of the
slower rank, from a barrier to a barrier; memory is that of the larger rank, above its level before. Both folders must hold the tensors of
the checkpoint that was loaded, bit for bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import checkpoint
import harness
import torch

CASES = ("export", "save_pretrained")
FILE_BYTES = 500_000_000
CLAIMS = (
    harness.Claim("peak_anonymous_bytes", *CASES, at_most=0.6),
    harness.Claim("seconds", *CASES, at_most=1),
)


def compare(model: Path, repeats: int) -> None:
    checkpoint.prepare(model)
    recorder = harness.Recorder("export")
    for _ in range(repeats):
        for case in CASES:
            ranks = harness.run_ranks(__file__, ["--model", str(model), "--case", case])
            for metric in ("seconds", "peak_rss_bytes", "peak_anonymous_bytes"):
                recorder.add(case, metric, max(rank[metric] for rank in ranks))
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    """One rank of one measurement."""
    import deepspeed

    from sani_dist.engine import distributed
    from sani_dist.engine.export import Form, export
    from sani_dist.engine.shards import local_shards
    from sani_dist.engine.zero3 import load_sharded, read_ds_config

    distributed.start(threads=None)
    ds_config: Any = read_ds_config(None, checkpoint.DTYPE)
    ds_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    model = load_sharded(arguments.model, ds_config, checkpoint.DTYPE)
    engine, *_ = deepspeed.initialize(model=model, config=ds_config)
    folder = arguments.result / "model"
    distributed.barrier()
    with harness.peak_memory() as peak:
        start = time.perf_counter()
        if arguments.case == CASES[0]:
            export(local_shards(model), arguments.model, folder, form=Form(file_bytes=FILE_BYTES))
        else:
            state = engine._zero3_consolidated_16bit_state_dict()
            if distributed.rank() == 0:
                model.save_pretrained(folder, state_dict=state, max_shard_size=FILE_BYTES)
        distributed.barrier()
        seconds = time.perf_counter() - start
    if distributed.rank() == 0:
        check_same(arguments.model, folder)
    harness.report(
        arguments.result, {"seconds": seconds, **{f"peak_{kind}_bytes": size for kind, size in peak.items()}}
    )
    distributed.stop()


def check_same(loaded: Path, written: Path) -> None:
    """Ends the benchmark where the two folders do not hold the same tensors."""
    from safetensors.torch import load_file

    found = {name: tensor for file in written.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in loaded.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if not torch.equal(found.pop(name), tensor):
                raise SystemExit(f"{name} was not written as it was loaded")
    if found:
        raise SystemExit(f"written and never loaded: {sorted(found)}")


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=checkpoint.DEFAULT_FOLDER, repeats=5, cases=CASES)
