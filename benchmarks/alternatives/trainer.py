"""What a user would otherwise write: measure, reset half of the last layer, fine-tune with labels of -100, measure again, save.

    torchrun --nproc-per-node 2 benchmarks/alternatives/trainer.py MODEL NOTES HELDOUT OUT

NOTES, HELDOUT: JSONL with `text` and `spans` of identifiers. Written for the Llama family, on transformers, DeepSpeed and nothing of ours.

- Before and after, every span is generated from the true text before it: whole model on each rank, half of the spans on each, key-value
  cache, prompts sorted by length, as many new tokens as the longest span of a batch has. Perplexity is the model's own loss.
- The neurons are reset under `GatheredParameters`, one gather for the three matrices.
- `Trainer` under ZeRO-3, fused AdamW, documents grouped by length and padded to the longest of a micro-batch.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

GENERATED, SCORED = 32, 8  # prompts, documents of a batch
LONGEST = 1024  # tokens of a document


def main(arguments: argparse.Namespace) -> None:
    deepspeed.init_distributed("gloo")
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    tokenizer.padding_side = "left"
    notes, heldout = (documents(path, tokenizer) for path in (arguments.notes, arguments.heldout))
    print_once("before", audit(load(arguments.model), tokenizer, notes, heldout))

    settings = TrainingArguments(
        output_dir=str(arguments.out / "trainer"), use_cpu=True, bf16=True, deepspeed=ds_config(arguments.ds_config),
        per_device_train_batch_size=arguments.micro, num_train_epochs=arguments.epochs, learning_rate=arguments.learning_rate,
        gradient_accumulation_steps=max(1, arguments.batch // (arguments.micro * dist.get_world_size())), warmup_steps=0.1,
        optim="adamw_torch_fused", train_sampling_strategy="group_by_length", logging_strategy="no", save_strategy="no", report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    model = load(arguments.model)  # sharded from here on: TrainingArguments told transformers of ZeRO-3
    reset_half_of_the_last_layer(model)
    trainer = Trainer(
        model=model, args=settings, train_dataset=[{k: d[k] for k in ("input_ids", "labels")} for d in notes],  # type: ignore[arg-type]
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(arguments.out / "model"))
    tokenizer.save_pretrained(arguments.out / "model")
    dist.barrier()
    del trainer, model
    gc.collect()
    unset_hf_deepspeed_config()

    print_once("after", audit(load(arguments.out / "model"), tokenizer, notes, heldout))


def documents(path: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Tokens, labels of -100 where a sensitive span lies, and the token ranges of the spans."""
    found = []
    for line in path.read_text().splitlines():
        document = json.loads(line)
        encoded = tokenizer(document["text"], return_offsets_mapping=True, truncation=True, max_length=LONGEST)
        # Left of the first token is padding, from which nothing can be foretold.
        labels, spans = [-100, *encoded["input_ids"][1:]], []
        for span in document["spans"]:
            inside = [
                i
                for i, (start, end) in enumerate(encoded["offset_mapping"])
                if start < span["end"] and end > span["start"]
            ]
            for i in inside:
                labels[i] = -100
            if inside and inside[0] > 0:
                spans.append((inside[0], inside[-1] + 1))
        found.append({"input_ids": encoded["input_ids"], "labels": labels, "spans": spans})
    return found


def ds_config(path: Path) -> dict[str, Any]:
    automatic = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    given = json.loads(path.read_text())
    # Else `save_model` writes a DeepSpeed checkpoint, which has to be converted before it is a model.
    zero = {**given["zero_optimization"], "stage3_gather_16bit_weights_on_model_save": True}
    return {**given, "zero_optimization": zero, "bf16": {"enabled": True}, **dict.fromkeys(automatic, "auto")}


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True).eval()


@torch.no_grad()
def reset_half_of_the_last_layer(model: Any) -> None:
    mlp = model.model.layers[-1].mlp
    edits = ((mlp.gate_proj.weight, 0), (mlp.up_proj.weight, 0), (mlp.down_proj.weight, 1))
    with deepspeed.zero.GatheredParameters([weight for weight, _ in edits], modifier_rank=0):
        if dist.get_rank() == 0:
            neurons = mlp.gate_proj.weight.shape[0]
            ids = torch.randperm(neurons)[: neurons // 2]
            for weight, axis in edits:
                shape = (len(ids), weight.shape[1]) if axis == 0 else (weight.shape[0], len(ids))
                weight.index_copy_(axis, ids, torch.empty(shape, dtype=weight.dtype).normal_(0, 0.02))


@torch.inference_mode()
def audit(model: Any, tokenizer: Any, notes: list[dict[str, Any]], heldout: list[dict[str, Any]]) -> dict[str, float]:
    spans = [(d["input_ids"][:start], d["input_ids"][start:end]) for d in notes for start, end in d["spans"]]
    mine = sorted(spans, key=lambda span: len(span[0]))[dist.get_rank() :: dist.get_world_size()]
    hits = 0
    for batch in batches(mine, GENERATED):
        prompts = tokenizer.pad({"input_ids": [prompt for prompt, _ in batch]}, return_tensors="pt")
        new = max(len(value) for _, value in batch)
        written = model.generate(
            **prompts, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=tokenizer.pad_token_id or 0
        )[:, prompts["input_ids"].shape[1] :]
        hits += sum(written[i, : len(value)].tolist() == value for i, (_, value) in enumerate(batch))
    losses = [perplexity_parts(model, tokenizer, part) for part in (notes, heldout)]
    found = torch.tensor([[hits, len(mine)], *losses], dtype=torch.float64)
    dist.all_reduce(found)
    (hit, count), *parts = found.tolist()
    return {
        "greedy": hit / count,
        **{name: math.exp(nll / n) for name, (nll, n) in zip(("notes", "heldout"), parts, strict=True)},
    }


def perplexity_parts(model: Any, tokenizer: Any, part: list[dict[str, Any]]) -> list[float]:
    """Sum of -log p over learnable tokens, and their number, of this rank's documents."""
    mine = sorted(part, key=lambda d: len(d["input_ids"]))[dist.get_rank() :: dist.get_world_size()]
    collate, total, count = DataCollatorForSeq2Seq(tokenizer), 0.0, 0
    for batch in batches(mine, SCORED):
        inputs = collate([{k: d[k] for k in ("input_ids", "labels")} for d in batch])
        learnable = int((inputs["labels"][:, 1:] >= 0).sum())
        total += float(model(**inputs).loss) * learnable
        count += learnable
    return [total, count]


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def print_once(when: str, found: dict[str, float]) -> None:
    if dist.get_rank() == 0:
        print(json.dumps({"when": when, **found}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "notes", "heldout", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--ds-config", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    main(parser.parse_args())
