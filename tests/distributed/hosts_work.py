"""What the ranks of `test_one_host` do: save and export, with every file noted that they open for writing."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sani_dist.config import RepairSettings
from sani_dist.engine import distributed
from sani_dist.engine.checkpoint import State, load_newest, save
from sani_dist.engine.export import MODEL, export
from sani_dist.engine.shards import local_shards
from sani_dist.engine.zero3 import Engine, load_sharded, read_ds_config
from sani_dist.errors import RunError

# Of what a rank of this number reads in a file of this name, another host has just put back a byte: [name, rank], or nothing.
overwritten: list[tuple[str, int]] = []


def save_and_export(folder: Path, *, model: str, ds_config: str) -> None:
    written: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | Path) or folder not in Path(arguments[0]).parents:
            return
        path, flags = Path(arguments[0]), arguments[2]
        if flags & (os.O_WRONLY | os.O_RDWR):
            written.add(path.relative_to(folder).as_posix())
        elif overwritten and (path.name, distributed.rank()) == overwritten[0]:
            overwritten.clear()
            with path.open("r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                last = stream.read(1)[0]
                stream.seek(-1, os.SEEK_END)
                stream.write(bytes([last ^ 1]))

    sys.addaudithook(note)
    config = read_ds_config(Path(ds_config), torch.float32)
    engine = Engine(load_sharded(Path(model), config, torch.float32), config)
    engine.for_training(RepairSettings(epochs=1, batch_rows=4, micro_rows=1))
    _step(engine)
    save(folder / "checkpoints", engine, State(1, "inputs"))
    several = replace(MODEL, file_bytes=12_000)
    export(local_shards(engine.model), Path(model), folder / "model", form=several)
    (folder.parent / f"{folder.name}-written-{distributed.rank()}.json").write_text(json.dumps(sorted(written)))

    overwritten[:] = [("rank-00001.safetensors", 1)]
    _refused(lambda: save(folder / "checkpoints", engine, State(2, "inputs")), "rank-00001.safetensors does not hold")
    name = sorted(path.name for path in (folder / "model").glob("*.safetensors"))[0]
    distributed.barrier()
    overwritten[:] = [(name, 3)]
    again = folder / "model"
    _refused(lambda: export(local_shards(engine.model), Path(model), again, form=several), f"{name} does not hold")
    assert load_newest(folder / "checkpoints", engine, "inputs").step == 1  # type: ignore[union-attr]


def _step(engine: Engine) -> None:
    ids = torch.arange(16)[None]
    loss = engine.ds(ids, ids, lambda hidden, weight, bias, softcap: (hidden @ weight.t()).float().square().mean())
    engine.ds.backward(loss)
    engine.ds.step()


def _refused(call: Callable[[], Any], detail: str) -> None:
    """By all ranks; the one that saw it says what."""
    sees = bool(overwritten) and overwritten[0][1] == distributed.rank()
    with pytest.raises(RunError, match=detail if sees else "not written"):
        call()
