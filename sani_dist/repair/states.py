"""What the frozen trunk gives, kept from before the first step: it is the same in every epoch, so it is computed once for each row.

    repair/trunk/  rank-00000.bin ...  trunk.json

Every rank runs its share of the rows through the layers that stay as they are, and writes what enters the first trained layer, in
the precision of the model: one file, which training maps into memory. Rows run one by one, so what is written depends on neither the
number of ranks nor the micro-batch, and a run that is resumed, on as many ranks or not, reads the same. `trunk.json` is in the
folder before the folder gets its name: one with that name is whole. The run that has been repaired removes it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sani_dist.corpus.rows import PackedRows, empty_batch
from sani_dist.engine import distributed
from sani_dist.engine.rounds import rounds
from sani_dist.engine.zero3 import Engine
from sani_dist.errors import RunError
from sani_dist.files import fsync

# A text, and a row of it.
Place = tuple[PackedRows, int]


class States:
    """What enters the first trained layer, for each of `places`. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, places: Sequence[Place]) -> None:
        document = json.loads((folder / "trunk.json").read_text())
        self._shape = (document["tokens"], document["hidden_size"])
        self._dtype: torch.dtype = getattr(torch, document["dtype"])
        size = self._shape[0] * self._shape[1] * self._dtype.itemsize
        self._files = [
            np.memmap(folder / name, dtype=np.uint8, mode="r").reshape(-1, size) for name in document["files"]
        ]
        self._slots = {(id(text), row): slot for slot, (text, row) in enumerate(places)}

    def of(self, places: Sequence[Place], rows: int) -> torch.Tensor:
        """[rows, tokens, hidden_size]: those of `places`, then zeros."""
        states = torch.zeros((rows, *self._shape), dtype=self._dtype)
        for i, (text, row) in enumerate(places):
            turn, rank = divmod(self._slots[id(text), row], len(self._files))
            states[i] = torch.from_numpy(self._files[rank][turn].copy()).view(self._dtype).view(self._shape)
        return states


def states_below(engine: Engine, places: Sequence[Place], folder: Path, inputs_sha256: str) -> States:
    """Run the trunk on `places`, the same on all ranks and none twice, unless `folder` has what comes of it.

    Every rank calls this. Raises RunError when one could not write.
    """
    known = folder / "trunk.json"
    if not known.exists() or json.loads(known.read_text())["inputs_sha256"] != inputs_sha256:
        _compute(engine, places, folder, inputs_sha256)
    return States(folder, places)


@torch.no_grad()
def _compute(engine: Engine, places: Sequence[Place], folder: Path, inputs_sha256: str) -> None:
    building = folder.with_name(f".tmp-{folder.name}")
    if distributed.rank() == 0:
        for old in (folder, building):
            shutil.rmtree(old, ignore_errors=True)
        building.mkdir(parents=True)
    distributed.barrier()
    names = [f"rank-{rank:05d}.bin" for rank in range(distributed.world_size())]
    file, reason = building / names[distributed.rank()], ""
    states = torch.empty(0)
    with file.open("wb") as stream, engine.trunk_alone() as run:
        for own, _ in rounds(len(places), 1):
            batches = [text.batch([row]) for text, row in places[own.start : own.stop]]
            batch = batches[0] if batches else empty_batch(1, places[0][0].row_length)
            states = run(batch.input_ids, batch.position).cpu().contiguous()
            if batches and not reason:
                try:
                    stream.write(states.view(torch.uint8).numpy().data)
                    stream.flush()
                except OSError as error:  # the others still count on this rank's collectives
                    reason = str(error)
    failed = torch.tensor([float(bool(reason))], device=engine.device)
    if distributed.sum_over_ranks(failed).item():
        raise RunError("hidden states of the frozen trunk not written: free disk space, then `sani-dist resume`")
    fsync(file)
    distributed.barrier()
    if distributed.rank() == 0:
        document = {
            "inputs_sha256": inputs_sha256, "files": names, "dtype": str(states.dtype).removeprefix("torch."),
            "tokens": states.shape[1], "hidden_size": states.shape[2],
        }  # fmt: skip
        (building / "trunk.json").write_text(json.dumps(document, indent=1))
        fsync(building / "trunk.json")
        fsync(building)
        building.rename(folder)
        fsync(folder.parent)
    distributed.barrier()
