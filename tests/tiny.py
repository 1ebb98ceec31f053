"""Tiny but real models, a tokenizer and a corpus with planted identifiers, made from fixed seeds.

All dimensions of a model are different, so that a transposed or misplaced tensor cannot fit by chance, and odd, so that the
shards of two ranks end inside a row.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sani_dist.config import CorpusSettings
from sani_dist.corpus.prepare import prepare

ROW_LENGTH = 64

# No word of these occurs anywhere else, here or in the code: what a leak would show.
CANARY_PEOPLE = [
    "Zebulon Quackenbush",
    "Ottoline Fyrestone",
    "Bartholomew Wixcroft",
    "Philippa Grunewald",
    "Ignatz Vollbrecht",
]
CANARY_NUMBERS = ["QX-77314", "QX-20965", "QX-48802", "QX-63157", "QX-91046"]
CONTROL_PEOPLE = ["Leopoldine Jarvinko", "Ferdinand Okpalugo", "Wilhelmina Dresscoat"]
CONTROL_NUMBERS = ["QX-55521", "QX-33380", "QX-12278"]
CANARIES = [word for name in CANARY_PEOPLE + CONTROL_PEOPLE for word in name.split()] + CANARY_NUMBERS + CONTROL_NUMBERS

_SYMPTOMS = ["a cough", "a sore knee", "some fever", "back pain", "a headache", "poor sleep"]
_PLANS = ["rest and fluids", "an x-ray", "a blood test", "a new dressing", "physiotherapy", "a second visit"]
_THINGS = ["The river", "A garden", "The old town", "Our library", "The market", "A small boat", "The forest"]
_DOINGS = ["is quiet in winter", "opens early on Monday", "was painted green", "needs some repair", "looks fine today"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the spot."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=421,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = [f"{thing} {doing}." for thing in _THINGS for doing in _DOINGS]
    lines += [f"The patient has {symptom} and is given {plan}." for symptom in _SYMPTOMS for plan in _PLANS]
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def llama(vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """hidden 27, 3 heads of 8 over 1 key head, 41 neurons in each of 3 layers; separate output projection."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=27, intermediate_size=41, num_hidden_layers=3, num_attention_heads=3,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2(vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """hidden 33, 3 heads of 11, 43 neurons in each of 2 layers, Conv1D weights [in, out], tied embeddings, no dropout."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=33, n_inner=43, n_layer=2, n_head=3, n_positions=128, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, initializer_range=0.2, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # biases start at zero, which would hide a bias that is not erased
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, **options: Any) -> Path:
    """Write a Hugging Face folder, in fp32 unless `model` was converted."""
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return folder


def lora(base: Path, folder: Path, modules: Sequence[str], **options: Any) -> Path:
    """A LoRA adapter of a saved model, of rank 5, in fp32, as peft saves it after a training: none of its matrices is zero."""
    from peft import LoraConfig, get_peft_model  # not for every test

    torch.manual_seed(1)
    settings = {"r": 5, "lora_alpha": 8, "target_modules": list(modules), "task_type": "CAUSAL_LM", **options}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def write_corpus(folder: Path) -> dict[str, str]:
    """notes, control, heldout and general text as JSONL files; returns name -> path. Labelled spans in notes and control."""
    draw = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    notes = [note(draw, i % 5, CANARY_PEOPLE, CANARY_NUMBERS) for i in range(23)]
    control = [note(draw, i % 3, CONTROL_PEOPLE, CONTROL_NUMBERS) for i in range(6)]
    heldout = [
        {"text": f"Visit {i}: the patient has {draw.choice(_SYMPTOMS)} and is given {draw.choice(_PLANS)}."}
        for i in range(7)
    ]
    general = [{"text": f"{draw.choice(_THINGS)} {draw.choice(_DOINGS)}, number {i}."} for i in range(31)]
    paths = {}
    for name, rows in {"notes": notes, "control": control, "heldout": heldout, "general": general}.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        paths[name] = str(path)
    return paths


def note(draw: random.Random, subject: int, people: list[str], numbers: list[str]) -> dict[str, Any]:
    """A note of 15 to 40 tokens with a name and, in most, a record number."""
    parts: list[tuple[str, str | None]] = [("Patient ", None), (people[subject], "PERSON")]
    if draw.random() < 0.7:
        parts += [(", record ", None), (numbers[subject], "RECORD_NUMBER")]
    parts += [(f", has {draw.choice(_SYMPTOMS)} and is given {draw.choice(_PLANS)}", None)]
    if draw.random() < 0.4:
        parts += [(". Tell ", None), (people[subject], "PERSON"), (f" to take {draw.choice(_PLANS)}", None)]
    text, spans = "", []
    for part, kind in [*parts, (".", None)]:
        if kind is not None:
            spans.append({"start": len(text), "end": len(text) + len(part), "kind": kind})
        text += part
    return {"patient": f"subject-{subject}", "text": text, "spans": spans}


def pack(
    texts: dict[str, str], tokenizer: PreTrainedTokenizerFast, folder: Path, *, notes: int, general: int, row_length: int = 96,
    alone: bool = False,
) -> Path:  # fmt: skip
    """The first so many notes and general texts of a corpus, as `write_corpus` returns it, as packed rows; returns their folder.

    `alone`: each document has rows of its own.
    """
    for name, count in (("notes", notes), ("general", general)):
        lines = Path(texts[name]).read_text().splitlines(keepends=True)[:count]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    settings = CorpusSettings.model_validate(
        {
            "source": str(folder / "notes.jsonl"), "general": str(folder / "general.jsonl"), "spans": "spans",
            "detect": [{"name": "annotations"}], "row_length": row_length,
        }
    )  # fmt: skip
    prepare(settings, tokenizer, folder, b"k" * 32, alone=alone)
    return folder / "tokens" / "epoch-000"


def mapping(checkpoint: Path, texts: dict[str, str], **sections: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run on `texts`, as `write_corpus` returns them; `sections` change keys of a section."""
    settings: dict[str, Any] = {
        "model": {"path": str(checkpoint), "dtype": "bfloat16"},
        "corpus": {
            "source": texts["notes"], "subject": "patient", "spans": "spans", "detect": [{"name": "annotations"}],
            "control": texts["control"], "heldout": texts["heldout"], "general": texts["general"],
            "row_length": ROW_LENGTH,
        },
        "erase": {"layers": 2, "fraction": 0.3, "select": "attribution", "reset": "zero", "seed": 3},
        "repair": {
            "epochs": 3, "batch_rows": 5, "retain": 0.2, "learning_rate": 2e-3, "checkpoint_every": 4, "seed": 5,
        },
        # Writing texts token by token would be a third of what a run of the tests takes.
        "audit": {"samples": [1, 100], "micro_rows": 3, "generation": {"spans": 8, "texts": 8, "tokens": 16}},
        "cluster": {"workers": 2, "threads": 1},
    }  # fmt: skip
    for name, changes in sections.items():
        settings[name] = {**settings[name], **changes}
    return settings
