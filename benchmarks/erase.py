"""Erasing half of the MLP neurons in the last 11 of 22 layers of a 2.2 GB Llama on two ranks: shards against gathering.

`apply` edits the ranges a rank owns. The alternative gathers the three matrices of one layer at a time with
`deepspeed.zero.GatheredParameters(..., modifier_rank=0)`, edits rows and columns by index on rank 0, and lets DeepSpeed
broadcast and partition again. Both run in turn in the same two processes, on shards restored before every measurement; the first,
unrecorded round also counts bytes and checks that zeroing gives the same shards. (`init` draws other random values, of the same
distribution.) Time is that of the slower rank, memory that of the larger one, above the level just before.

Bytes are what DeepSpeed's communication log holds after an erase, summed over the calls of a rank. As that log sees only
`deepspeed.comm`, `c10d_calls` counts the collectives that torch's profiler saw beneath.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkpoint
import harness
import numpy as np
import torch
from load import shards_sha256
from transformers import PreTrainedModel

from sani_dist.erase.plan import Plan, Unit

LAYERS, FRACTION, SEED = 11, 0.5, 0
RESETS = ("zero", "init")
WAYS = ("apply", "gathered")
CLAIMS = tuple(harness.Claim("seconds", f"gathered {r}", f"apply {r}", at_least=5) for r in RESETS)


def compare(model: Path, repeats: int) -> None:
    checkpoint.prepare(model)
    recorder = harness.Recorder("erase")
    ranks = harness.run_ranks(__file__, ["--model", str(model), "--repeats", str(repeats)])
    for case in ranks[0]:
        for metric in ranks[0][case]["values"]:
            for values in zip(*(rank[case]["values"][metric] for rank in ranks), strict=True):
                recorder.add(case, metric, max(values))
    for rank in ranks:
        if rank["apply zero"]["sha256"] != rank["gathered zero"]["sha256"]:
            raise SystemExit("zeroing by apply and under GatheredParameters left different shards")
        if rank["apply zero"]["sha256"] == rank["apply init"]["sha256"]:
            raise SystemExit("zeroing and re-initialising left the same shards: nothing was erased")
    if any(rank["gathered zero"]["values"]["logged_bytes"][0] == 0 for rank in ranks):
        raise SystemExit("the communication log is empty for GatheredParameters too: it does not work")
    recorder.save(CLAIMS)


def measure(arguments: argparse.Namespace) -> None:
    """One rank: all cases in turn."""
    from sani_dist.engine import distributed
    from sani_dist.engine.shards import local_shards
    from sani_dist.engine.zero3 import load_sharded, read_ds_config

    distributed.start(threads=None)
    model = load_sharded(arguments.model, read_ds_config(None, checkpoint.DTYPE), checkpoint.DTYPE)
    before = [live.values.clone() for live in local_shards(model)]
    cases = {f"{way} {reset}": (way, random_plan(model, reset)) for reset in RESETS for way in WAYS}
    measured: dict[str, dict[str, Any]] = {}
    for repeat in range(-1, arguments.repeats):
        for case, (way, plan) in cases.items():
            for live, saved in zip(local_shards(model), before, strict=True):
                live.values.copy_(saved)
            distributed.barrier()
            erase = erase_shards if way == "apply" else erase_gathered
            if repeat < 0:
                values = {**communication(partial(erase, model, plan)), "seconds": [], "peak_rss_bytes": []}
                measured[case] = {"values": values, "sha256": shards_sha256(model)}
                continue
            with harness.peak_memory() as peak:
                start = time.perf_counter()
                erase(model, plan)
                measured[case]["values"]["seconds"].append(time.perf_counter() - start)
            measured[case]["values"]["peak_rss_bytes"].append(peak["rss"])
    harness.report(arguments.result, measured)
    distributed.stop()


def random_plan(model: PreTrainedModel, reset: str) -> Plan:
    draw = np.random.default_rng(SEED)
    neurons, layers = model.config.intermediate_size, model.config.num_hidden_layers
    ids = {n: np.sort(draw.permutation(neurons)[: round(FRACTION * neurons)]) for n in range(layers - LAYERS, layers)}
    return Plan("", SEED, "random", reset, tuple(Unit(n, "mlp", tuple(chosen.tolist())) for n, chosen in ids.items()))


def erase_shards(model: PreTrainedModel, plan: Plan) -> None:
    from sani_dist.engine.shards import local_shards
    from sani_dist.erase.apply import apply
    from sani_dist.erase.structure import last_units

    apply(local_shards(model), last_units(model, LAYERS, "mlp"), plan)


@torch.no_grad()
def erase_gathered(model: PreTrainedModel, plan: Plan) -> None:
    """What a user of DeepSpeed writes, with one gather for a layer's three matrices."""
    import deepspeed

    std = model.config.initializer_range
    for unit in plan.units:
        mlp, ids = model.model.layers[unit.layer].mlp, torch.tensor(unit.ids)
        edits = ((mlp.gate_proj.weight, 0), (mlp.up_proj.weight, 0), (mlp.down_proj.weight, 1))
        with deepspeed.zero.GatheredParameters([weight for weight, _ in edits], modifier_rank=0):
            if deepspeed.comm.get_rank() != 0:
                continue
            for weight, axis in edits:
                if plan.reset == "zero":
                    weight.index_fill_(axis, ids, 0)
                else:
                    shape = (len(ids), weight.shape[1]) if axis == 0 else (weight.shape[0], len(ids))
                    weight.index_copy_(axis, ids, torch.empty(shape, dtype=weight.dtype).normal_(0, std))


def communication(act: Callable[[], None]) -> dict[str, list[float]]:
    """What this rank communicates while `act` runs, read off DeepSpeed's log and torch's profiler: one value each."""
    from sani_dist.engine.communication import logged

    with logged() as found, torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        act()
    calls = sum(event.count for event in profile.key_averages() if event.key.startswith("c10d::"))
    return {"logged_bytes": [sum(found.values())], "c10d_calls": [calls]}


if __name__ == "__main__":
    harness.command_line(__doc__, compare, measure, model=checkpoint.DEFAULT_FOLDER, repeats=7)
