"""Checkpoints of repair: masters and both moments as flat ranges, readable at any world size, without pickle.

    step-000100/  rank-00000.safetensors ...  state.json

Each tensor is named `kind|parameter|start`, kind being master, exp_avg or exp_avg_sq; the first rank has the persistent buffers too, as
`buffer|name|0`. A rank that loads reads the overlap of what is stored with what it owns, so resuming and resizing are one operation.
`state.json` is in the folder, with the hash of each file, before the folder gets its name: a folder with that name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch

from sani_dist.engine import distributed
from sani_dist.engine.buffers import persistent_buffers
from sani_dist.engine.deepspeed_internals import create_adam_state, local_state, set_local_state
from sani_dist.engine.safetensors_files import plan_files, read_header, read_range
from sani_dist.engine.shards import LiveShard, local_shards
from sani_dist.engine.stored_tensor import StoredTensor
from sani_dist.engine.zero3 import Engine
from sani_dist.errors import InputError, RunError
from sani_dist.files import file_sha256, fsync

SCHEMA = 1
KEEP = 2
KINDS = ("master", "exp_avg", "exp_avg_sq")
BUFFER = "buffer"


@dataclass(frozen=True)
class State:
    """Where training stands after `step` optimizer steps. Data order and schedule follow from `step` and the settings."""

    step: int
    inputs_sha256: str
    loss: float | None = None
    tokens: int = 0
    schema: int = SCHEMA
    files: dict[str, str] = field(default_factory=dict)
    torch_rng: list[str] = field(default_factory=list)


def save(folder: Path, engine: Engine, state: State) -> Path:
    """Write the checkpoint of `state.step` below `folder`; every rank calls this. Old ones beyond `KEEP` are removed.

    Raises RunError when a rank could not write; the checkpoints before are untouched.
    """
    final = checkpoint_path(folder, state.step)
    building = folder / f".tmp-{final.name}"
    if distributed.rank() == 0:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
    distributed.barrier()
    failed, reason, digest = torch.zeros(1), "", bytes(32)
    try:
        digest = _write(building, engine)
    except OSError as error:
        failed += 1
        reason = f" ({error.strerror})"
    if distributed.sum_over_ranks(failed).item():
        if distributed.rank() == 0:
            shutil.rmtree(building, ignore_errors=True)
        raise RunError(f"checkpoint of step {state.step} not written{reason}: free disk space, then `sani-dist resume`")
    digests = _hex_of_ranks(torch.tensor(list(digest), dtype=torch.uint8))
    rng = _hex_of_ranks(torch.get_rng_state())
    if distributed.rank() == 0:
        files = {_file_name(rank): digest for rank, digest in enumerate(digests)}
        document = asdict(State(**{**asdict(state), "files": files, "torch_rng": rng}))
        (building / "state.json").write_text(json.dumps(document, indent=1))
        fsync(building / "state.json")
        fsync(building)
        shutil.rmtree(final, ignore_errors=True)
        building.rename(final)
        fsync(folder)
        for old in list_whole(folder)[:-KEEP]:
            shutil.rmtree(old)
    distributed.barrier()
    return final


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def read_state(checkpoint: Path) -> State | None:
    """None where its file is damaged."""
    try:
        return State(**json.loads((checkpoint / "state.json").read_text()))
    except (ValueError, TypeError):
        return None


def list_whole(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if (p / "state.json").exists())


def load_newest(folder: Path, engine: Engine, inputs_sha256: str) -> State | None:
    """Put the newest checkpoint whose hashes fit into an engine that is ready to train; None when there is none.

    Raises InputError when it was written by a run with another model, corpus or settings.
    """
    for path in reversed(list_whole(folder)):
        state = read_state(path)
        if state is None or any(
            not (path / name).exists() or file_sha256(path / name) != sha for name, sha in state.files.items()
        ):
            continue
        _check_inputs(path, state, inputs_sha256)
        _load(path, engine, state)
        return state
    return None


def check_checkpoints(folder: Path, inputs_sha256: str) -> None:
    """Raises InputError, as `load_newest` would, but without an engine."""
    for path in list_whole(folder):
        if (state := read_state(path)) is not None:
            _check_inputs(path, state, inputs_sha256)


def _check_inputs(path: Path, state: State, inputs_sha256: str) -> None:
    if state.inputs_sha256 != inputs_sha256:
        raise InputError(
            f"{path} belongs to another model, corpus or settings: undo the change, or start a new run in another folder"
        )


def _file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _write(folder: Path, engine: Engine) -> bytes:
    """Write this rank's file, a tensor at a time, and read it back; returns its SHA-256. Raises OSError when the disk is full, or does not
    hold what was written."""
    contents = list(_contents(engine))
    layout = [(name, shape, dtype) for name, shape, dtype, _ in contents]
    name = _file_name(distributed.rank())
    (planned,) = plan_files(layout, folder, file_bytes=2**62, stem=Path(name).stem, metadata={})
    digest = hashlib.sha256(planned.header)
    with (folder / name).open("wb") as stream:
        stream.write(planned.header)
        for _, _, dtype, read in contents:
            data = read().detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
            digest.update(data)
            stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    if file_sha256(folder / name) != digest.hexdigest():
        raise OSError(None, f"{name} does not hold what was written")
    return digest.digest()


def _contents(engine: Engine) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, Callable[[], torch.Tensor]]]:
    """Name, shape and dtype of what this rank's file holds, and a function that gives it: no tensor is copied before its turn."""
    parameters = dict(engine.model.named_parameters())
    for live in _trained(engine):
        for kind in KINDS:
            read = partial(_part, parameters[live.shard.name], kind, live.shard.numel)
            yield f"{kind}|{live.shard.name}|{live.shard.start}", (live.shard.numel,), torch.float32, read
    if distributed.rank() == 0:  # the same on all ranks
        for name, buffer in persistent_buffers(engine.model).items():
            yield f"{BUFFER}|{name}|0", tuple(buffer.shape), buffer.dtype, partial(torch.Tensor.detach, buffer)


def _part(parameter: torch.nn.Parameter, kind: str, count: int) -> torch.Tensor:
    return local_state(parameter, kind)[:count]


def _trained(engine: Engine) -> Iterator[LiveShard]:
    """This rank's shards that are trained, without empty ones."""
    parameters = dict(engine.model.named_parameters())
    for live in local_shards(engine.model):
        if live.shard.numel and parameters[live.shard.name].requires_grad:
            yield live


def _load(path: Path, engine: Engine, state: State) -> None:
    pieces: dict[tuple[str, str], list[tuple[int, StoredTensor]]] = {}
    for name in state.files:
        for tensor in read_header(path / name):
            kind, parameter, start = tensor.name.split("|")
            pieces.setdefault((kind, parameter), []).append((int(start), tensor))
    create_adam_state(engine.ds, state.step)
    parameters = dict(engine.model.named_parameters())
    for live in local_shards(engine.model):
        shard, parameter = live.shard, parameters[live.shard.name]
        if not parameter.requires_grad:
            continue
        padded = torch.zeros(parameter.ds_tensor.numel(), dtype=torch.float32)  # type: ignore[attr-defined]
        for kind in KINDS:
            _fill(padded[: shard.numel], shard.start, shard.stop, pieces.get((kind, shard.name), []))
            set_local_state(parameter, kind, padded)
            if kind == "master":
                live.values.copy_(padded[: shard.numel])
    for name, buffer in persistent_buffers(engine.model).items():
        for _, tensor in pieces.get((BUFFER, name), []):
            values = torch.empty(tensor.shape, dtype=tensor.dtype)
            read_range(tensor, 0, tensor.numel, values.view(-1))
            buffer.copy_(values)
    if distributed.rank() < len(state.torch_rng):
        torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.torch_rng[distributed.rank()])), dtype=torch.uint8))


def _fill(out: torch.Tensor, start: int, stop: int, pieces: list[tuple[int, StoredTensor]]) -> None:
    filled = 0
    for first, tensor in pieces:
        low, high = max(start, first), min(stop, first + tensor.numel)
        if low < high:
            read_range(tensor, low - first, high - first, out[low - start : high - start])
            filled += high - low
    if filled != stop - start:
        raise InputError("the checkpoint does not hold all of the model's parameters: it belongs to another model")


def _hex_of_ranks(state: torch.Tensor) -> list[str]:
    gathered = distributed.gather_in_rank_order(state)
    return [bytes(row.tolist()).hex() for row in gathered]
