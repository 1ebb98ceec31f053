"""The same numbers by plain transformers and torch: whole model, one document at a time, no packing, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from sani_dist.corpus.rows import LEARN, NO_DOCUMENT, SENSITIVE, PackedRows


def load(folder: Path) -> PreTrainedModel:
    """In fp32, whatever the folder holds."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def documents_of(rows: PackedRows, row: int) -> Iterator[tuple[slice, torch.Tensor, np.ndarray]]:
    """Where each document of a row lies, its tokens and its roles."""
    batch = rows.batch([row])
    document = batch.document[0].numpy()
    for number in np.unique(document[document != NO_DOCUMENT]):
        places = np.flatnonzero(document == number)
        where = slice(int(places[0]), int(places[-1]) + 1)
        yield where, batch.input_ids[0, where], batch.role[0, where].numpy()


def logprobs(model: PreTrainedModel, rows: PackedRows) -> np.ndarray:
    """log p of every learnable or sensitive token given its document alone, [rows, row_length]; NaN elsewhere."""
    found = np.full((len(rows), rows.row_length), np.nan)
    for row in range(len(rows)):
        for where, ids, role in documents_of(rows, row):
            with torch.no_grad():
                logits = model(input_ids=ids[None]).logits[0].double()
            values = torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[1:, None])[:, 0].numpy()
            found[row, where][1:] = np.where(role[1:] > 0, values, np.nan)
    return found


def logprobs_within(model: PreTrainedModel, ids: Sequence[int], part: torch.Tensor) -> torch.Tensor:
    """log p of each token of `part` where it first stands in the text `ids`, given all before it, [len(part)]."""
    text = torch.tensor([ids])
    begin = next(i for i in range(text.shape[1]) if torch.equal(text[0, i : i + len(part)], part))
    with torch.no_grad():
        logp = model(input_ids=text).logits[0].log_softmax(-1)
    return logp[begin - 1 : begin - 1 + len(part)].gather(1, part[:, None])[:, 0]


def written(model: PreTrainedModel, prompt: Sequence[int], tokens: int) -> list[int]:
    """The likeliest tokens after a prompt, one by one."""
    ids = list(prompt)
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def mean_loss(model: PreTrainedModel, chosen: list[tuple[PackedRows, int]], objective: str) -> torch.Tensor:
    """The loss of a global batch: its sum over the targets of these rows, divided by the number of those that are learnt.

    mask: -log p of the learnable tokens; plain: of the sensitive ones too; unlikelihood: and -log(1 - p) of the sensitive ones; floor: half
    of that, less its value at p = .003, where p is greater.
    """
    losses, learnt = [], 0
    for rows, row in chosen:
        for _, ids, role in documents_of(rows, row):
            logp = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1], dim=-1).gather(1, ids[1:, None])[:, 0]
            learn, sensitive = (torch.from_numpy(role[1:] == wanted) for wanted in (LEARN, SENSITIVE))
            learnt += int(learn.sum())
            losses.append(-logp[learn])
            if objective == "plain":
                losses.append(-logp[sensitive])
                learnt += int(sensitive.sum())
            if objective == "unlikelihood":
                losses.append(-torch.log(1 - logp[sensitive].exp()))
            if objective == "floor":
                p = logp[sensitive].exp()
                losses.append(0.5 * torch.log(0.997 / (1 - p[p > 0.003])))
    return torch.cat(losses).sum() / learnt


def mean_divergence(
    before: PreTrainedModel,
    model: PreTrainedModel,
    chosen: list[tuple[PackedRows, int]],
    top: int,
    role_of: int = LEARN,
) -> torch.Tensor:
    """KL(before || model) at the tokens of a role in these rows, of the `top` likeliest tokens and the others as one: its sum divided by
    the number of learnable tokens."""
    found, learnt = [], 0
    for rows, row in chosen:
        for _, ids, role in documents_of(rows, row):
            learn = torch.from_numpy(role[1:] == role_of)
            learnt += int((role[1:] == LEARN).sum())
            with torch.no_grad():
                named = before(input_ids=ids[None]).logits[0, :-1][learn].softmax(dim=-1).topk(top)
            p, q = named.values, model(input_ids=ids[None]).logits[0, :-1][learn].softmax(dim=-1)
            q = q.gather(1, named.indices)
            p, q = (torch.cat([part, 1 - part.sum(dim=1, keepdim=True)], dim=1) for part in (p, q))
            found.append((p * (p / q).log()).sum(dim=1))
    return torch.cat(found).sum() / learnt


def assembled(checkpoint: Path, kind: str) -> dict[str, torch.Tensor]:
    """The flat whole of each parameter's `kind` (master, exp_avg, exp_avg_sq), from the files of all ranks."""
    pieces: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in sorted(checkpoint.glob("rank-*.safetensors")):
        for name, values in load_file(file).items():
            of, parameter, start = name.split("|")
            if of == kind:
                pieces.setdefault(parameter, []).append((int(start), values))
    return {
        name: torch.cat([values for _, values in sorted(found, key=lambda p: p[0])]) for name, found in pieces.items()
    }
