"""Repair of SmolLM2-135M on clinical notes of mixed length, two ranks: ours against `transformers.Trainer` with labels of -100.

Both run the same ZeRO-3 config in bfloat16, with equal global batches: 8 packed rows of 1024 tokens, or as many documents as 8 rows hold
on average. `Trainer` pads to the longest document of a micro-batch, groups documents of similar length, has the fused AdamW, and logs
nothing. Each takes the micro-batch that was fastest for it, tried before for one epoch; ours also runs with two thirds of the layers run
again in backward, which take less memory and more time, and with each objective that draws tokens to another model (`asking_seconds`: what
that one takes to be asked, before the first step). All train two epochs and the second is measured, whole: tokens of role "learn" in
the text, over the seconds of the slower rank. Memory is the peak of the larger rank, loading included, above its level after imports and
after joining the process group.

Without packing (one document to a row, in the order of ours), the losses of the two must agree step by step.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

import harness
import notes
import numpy as np
import torch

from sani_dist.config import Objectives, RepairSettings
from sani_dist.corpus import PackedRows
from sani_dist.corpus.encode import Encoded
from sani_dist.corpus.pack import write_rows
from sani_dist.corpus.rows import AIM, LEARN
from sani_dist.repair.schedule import Schedule

CASES = ("ours", "Trainer")
DOCUMENTS, BATCH_ROWS = 72, 8
# Rows or documents of one forward pass of one rank; with 12 documents two ranks of Trainer do not fit into 24 GB.
MICRO = {"ours": (1, 2), "Trainer": (2, 4)}
LEARNING_RATE = 5e-5
# The comparison of losses: documents of at most so many tokens, global batch, and the difference that bf16 may make.
SHORT, SHORT_BATCH, SAME_LOSS = 256, 8, 0.01
METRICS = ("learnable_tokens_per_second", "peak_rss_bytes", "peak_anonymous_bytes")
RECOMPUTED, SHARE = "ours, 2/3 of the layers again", 0.67
# kl: ordinary tokens drawn to the model before; aim: first occurrences of sensitive values to a base, here the same model once more.
DRAWN = {"ours, kl": {"kl": 1.0}, "ours, aim": {"aim": 1.0}, "ours, kl and aim": {"kl": 1.0, "aim": 1.0}}
CLAIMS = tuple(
    claim
    for ours in ("ours", RECOMPUTED)
    for claim in (
        harness.Claim(METRICS[0], ours, "Trainer", at_least=1.5),
        harness.Claim(METRICS[1], ours, "Trainer", at_most=0.7),
        harness.Claim(METRICS[2], ours, "Trainer", at_most=0.7),
    )
)


def compare(folder: Path, repeats: int) -> None:
    notes.prepare(folder, DOCUMENTS)

    def run(case: str, micro: int, *options: str, epochs: int = 1) -> dict[str, Any]:
        arguments = [
            "--model", folder, "--case", case, "--micro", micro, "--epochs", epochs, *options
        ]  # fmt: skip
        ranks = harness.run_ranks(__file__, map(str, arguments))
        slowest = max(ranks, key=lambda rank: rank["seconds"])
        return {**slowest, **{name: max(rank[name] for rank in ranks) for name in METRICS[1:]}}

    check_losses(*(run(case, 2, "--unpacked")["losses"] for case in CASES))
    recorder = harness.Recorder("repair_step")
    best = {}
    for case in CASES:
        tried = {micro: run(case, micro)["seconds"] for micro in MICRO[case]}
        best[case] = min(tried, key=lambda micro: tried[micro])
        print(f"{case}: seconds an epoch by micro-batch {tried}", flush=True)
    for _ in range(repeats):
        for name, found in (
            ("ours", run("ours", best["ours"], epochs=2)),
            (RECOMPUTED, run("ours", best["ours"], "--recomputed", epochs=2)),
            *((name, run("ours", best["ours"], "--drawn", name, epochs=2)) for name in DRAWN),
            ("Trainer", run("Trainer", best["Trainer"], epochs=2)),
        ):
            for metric in (*METRICS, *(["asking_seconds"] if name in DRAWN else [])):
                recorder.add(name, metric, found[metric])
    recorder.save(CLAIMS)


def check_losses(ours: list[float], theirs: list[float]) -> None:
    differences = [abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)]
    print(f"without packing, {len(ours)} steps: losses differ by at most {max(differences):.2%}", flush=True)
    if max(differences) > SAME_LOSS:
        raise SystemExit(f"the losses differ: {ours}, {theirs}")


def measure(arguments: argparse.Namespace) -> None:
    """One rank of one measurement: some epochs, the second half of them timed; `unpacked`: with the losses of each step."""
    import accelerate  # noqa: F401
    import deepspeed  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401
    from transformers import Trainer  # noqa: F401

    from sani_dist.engine import distributed

    distributed.start(threads=None)
    model, path = notes.prepare(arguments.model, DOCUMENTS)
    rows = PackedRows(path)
    documents = notes.documents_of(rows)
    if arguments.unpacked:
        documents = [d for d in documents if len(d["input_ids"]) <= SHORT]
        documents = documents[: len(documents) // SHORT_BATCH * SHORT_BATCH]
    learnable = sum(label >= 0 for document in documents for label in document["labels"][1:])
    distributed.barrier()
    with harness.peak_memory() as peak:
        if arguments.case == "ours":
            settings = RepairSettings(
                epochs=arguments.epochs, batch_rows=SHORT_BATCH if arguments.unpacked else BATCH_ROWS,
                micro_rows=arguments.micro, learning_rate=LEARNING_RATE, schedule="constant", warmup=0, checkpoint_every=10**9,
                activation_checkpointing=SHARE if arguments.recomputed else False,
                objectives=Objectives.model_validate(DRAWN.get(arguments.drawn, {})),
            )  # fmt: skip
            chosen = rows_of(documents, arguments.result) if arguments.unpacked else rows
            found = ours(model, chosen, settings, arguments.result)
        else:
            found = trainer(model, documents, math.ceil(len(documents) * BATCH_ROWS / len(rows)), arguments)
    if not arguments.unpacked:
        found["learnable_tokens_per_second"] = learnable / found["seconds"]
    harness.report(arguments.result, {**found, **{f"peak_{kind}_bytes": value for kind, value in peak.items()}})
    distributed.stop()


def ours(model: Path, rows: PackedRows, settings: RepairSettings, folder: Path) -> dict[str, Any]:
    """Losses of all steps; seconds of the second half of them, of two epochs the second; seconds of the trunk, if it is frozen, and of
    asking the models that tokens are drawn to: the model itself before training, and once more as the base."""
    from sani_dist.engine.checkpoint import State
    from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config
    from sani_dist.repair import Predictions, Progress, places_of, predictions, states_below, train

    ds_config = read_ds_config(None, torch.bfloat16)
    engine = Engine(load_sharded(model, ds_config, torch.bfloat16), ds_config)
    objectives = settings.objectives
    rows = rows.aimed() if objectives.aim else rows
    texts, states, taught = [rows] * len(settings.text_of_epochs), None, None
    times = {}
    if objectives.kl or objectives.aim:
        start = time.perf_counter()
        places, top, folders = places_of(settings, texts, None), objectives.kl_top, dict[int, Path]()
        if objectives.kl:
            folders[LEARN] = folder / "teacher"
            predictions(engine, places, folders[LEARN], top, "benchmark")
        if objectives.aim:
            folders[AIM] = folder / "reference"
            base = Engine(load_sharded(model, ds_config, torch.bfloat16), ds_config)
            predictions(base, places, folders[AIM], top, "benchmark", AIM)
            base.close()
        taught = Predictions(folders, places, top)
        times["asking_seconds"] = time.perf_counter() - start
    if settings.trainable != "all":
        engine.freeze_first_layers(settings.trainable.last)
        start = time.perf_counter()
        states = states_below(engine, places_of(settings, texts, None), folder / "trunk", "benchmark")
        times["trunk_seconds"] = time.perf_counter() - start
    engine.for_training(settings)
    steps: list[tuple[float, Progress]] = []
    train(
        engine, texts, None, settings, State(0, "benchmark"),
        states=states,
        taught=taught,
        report=lambda progress: steps.append((time.perf_counter(), progress)),
    )  # fmt: skip
    half = len(steps) // 2
    times["seconds"] = steps[-1][0] - steps[half - 1][0]
    return {"losses": [progress.loss for _, progress in steps], **times}


def trainer(
    model: Path, documents: list[dict[str, list[int]]], documents_of_a_step: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    from alternatives.trainer import ds_config
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from sani_dist.engine.zero3 import DEFAULT_DS_CONFIG

    batch = SHORT_BATCH if arguments.unpacked else documents_of_a_step
    settings = TrainingArguments(
        output_dir=str(arguments.result / "trainer"), use_cpu=True, bf16=True, deepspeed=ds_config(DEFAULT_DS_CONFIG),
        per_device_train_batch_size=arguments.micro, gradient_accumulation_steps=batch // (2 * arguments.micro),
        num_train_epochs=arguments.epochs, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        optim="adamw_torch_fused", train_sampling_strategy="sequential" if arguments.unpacked else "group_by_length",
        logging_strategy="steps" if arguments.unpacked else "no", logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.starts: list[float] = []
            self.end = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.starts.append(time.perf_counter())

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.end = time.perf_counter()

    clock = Clock()
    running = Trainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, local_files_only=True),
        args=settings, callbacks=[clock],
        train_dataset=in_order_of_ours(documents) if arguments.unpacked else documents,  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(model)),
    )  # fmt: skip
    if running.accelerator.num_processes != 2:
        raise SystemExit("Accelerate does not see the two ranks: every one would train on all documents")
    running.train()
    losses = [entry["loss"] for entry in running.state.log_history if "loss" in entry]
    return {"losses": losses, "seconds": clock.end - clock.starts[-1]}


def rows_of(documents: list[dict[str, list[int]]], folder: Path) -> PackedRows:
    """One document to a row."""
    encoded = (
        Encoded(i, np.array(d["input_ids"]), (np.array(d["labels"]) >= 0).astype(np.uint8), ())
        for i, d in enumerate(documents)
    )
    path = folder / f"unpacked-{os.environ['RANK']}.arrow"
    for _ in write_rows(path, ([one] for one in encoded), SHORT, padding=0):
        pass
    return PackedRows(path)


def in_order_of_ours(documents: list[dict[str, list[int]]]) -> list[dict[str, list[int]]]:
    schedule = Schedule(RepairSettings(epochs=1, batch_rows=SHORT_BATCH), [documents], None)  # type: ignore[list-item]
    return [documents[i] for step in range(schedule.steps) for _, i in schedule.batch(step)[0]]


if __name__ == "__main__":
    parser = harness.options(__doc__, model=notes.DEFAULT_FOLDER, repeats=5, cases=CASES)
    parser.add_argument("--micro", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--drawn", choices=DRAWN, default="", help=argparse.SUPPRESS)
    for option in ("--unpacked", "--recomputed"):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.result:
        measure(given)
    else:
        compare(given.model, given.repeats)
