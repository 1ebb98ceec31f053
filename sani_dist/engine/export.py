"""Shards -> a Hugging Face folder: every rank writes its byte ranges, as far as one host writes each file; nothing is gathered.

The folder is built under a temporary name and gets its own by one rename, so a folder with that name is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sani_dist.engine import distributed
from sani_dist.engine.one_host import HostFiles
from sani_dist.engine.safetensors_files import METADATA, PlannedFile, plan_files
from sani_dist.engine.shards import LiveShard
from sani_dist.errors import RunError
from sani_dist.files import file_sha256, fsync

# What makes a model usable, and nothing that training left: no training arguments, optimizer states, old model cards.
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates", "sentencepiece.bpe.model",
    "spiece.model", "spm.model", "tokenizer.tiktoken",
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What a folder of weights consists of: how their files are named, at most how large and what their headers say; what is copied."""

    stem: str = "model"
    file_bytes: int = 5 * 2**30
    metadata: Mapping[str, str] = field(default_factory=lambda: METADATA)
    copied: tuple[str, ...] = ("config.json", "generation_config.json", *TOKENIZER)


MODEL = Form()


def export(
    shards: Iterable[LiveShard], source: Path, folder: Path, *, dtype: torch.dtype | None = None, form: Form = MODEL
) -> dict[str, str]:
    """Write shards of all ranks as the model `folder`; every rank calls this with its own. Returns file -> sha256.

    `source` is the checkpoint that config and tokenizer are copied from, by an allow-list. `dtype` is recorded in config.json.
    Raises RunError when the disk is full, or does not hold what a rank wrote; an earlier `folder` stays as it was.
    """
    building = folder.with_name(f".tmp-{folder.name}")
    live = list(shards)
    tensors = [(s.shard.name, s.shard.shape, s.shard.dtype) for s in live]
    files = plan_files(tensors, building, form.file_bytes, form.stem, form.metadata)
    if distributed.rank() == 0:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    distributed.barrier()
    writing = HostFiles(files, live, building)
    _all_or_none(writing.create, building)
    _all_or_none(writing.write, building)
    _all_or_none(writing.verify, building, "look after the storage")
    hashes: dict[str, str] = {}
    if distributed.rank() == 0:
        _write_index(files, building)
        _copy_beside(source, building, dtype, form.copied)
        for path in sorted(p for p in building.rglob("*") if p.is_file()):
            fsync(path)
            hashes[path.relative_to(building).as_posix()] = file_sha256(path)
        fsync(building)
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
        fsync(folder.parent)
    distributed.barrier()
    return hashes


def _all_or_none(step: Callable[[], None], building: Path, then: str = "free disk space") -> None:
    """Run `step`; all ranks raise when it failed on one, so that none waits for the others."""
    failed, reason = torch.zeros(1), ""
    try:
        step()
    except OSError as error:
        failed += 1
        reason = f" ({error.strerror})"
    if distributed.sum_over_ranks(failed).item():
        if distributed.rank() == 0:
            shutil.rmtree(building, ignore_errors=True)
        raise RunError(f"the model was not written to {building.parent}{reason}: {then}, then `sani-dist resume`")


def _write_index(files: list[PlannedFile], folder: Path) -> None:
    if len(files) == 1:
        return
    weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
    total = sum(t.numel * t.dtype.itemsize for file in files for t in file.tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _copy_beside(source: Path, folder: Path, dtype: torch.dtype | None, copied: tuple[str, ...] = MODEL.copied) -> None:
    for name in copied:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        elif (source / name).is_dir():
            shutil.copytree(source / name, folder / name)
    if dtype is not None:
        config = json.loads((folder / "config.json").read_text())
        name = str(dtype).removeprefix("torch.")
        if config.get("dtype", config.get("torch_dtype")) != name:  # else it stays byte for byte
            config.pop("torch_dtype", None)
            config["dtype"] = name
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
