"""What is computed once for each row before the first step, and kept in files that training maps into memory.

    repair/NAME/  rank-00000.bin ...  NAME.json

Every rank computes its share of the rows, one by one, and writes them to a file of its own: what is written depends on neither the
number of ranks nor the micro-batch, and a run that is resumed, on as many ranks or not, reads the same. `NAME.json` is in the folder
before the folder gets its name: one with that name is whole. The run that has been repaired removes it, and so does `purge`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sani_dist.corpus.rows import Batch, PackedRows, empty_batch
from sani_dist.engine import distributed
from sani_dist.engine.map_rows import rounds
from sani_dist.errors import RunError
from sani_dist.files import fsync

# A text, and a row of it.
Place = tuple[PackedRows, int]


class RowCache:
    """The records of `places`, of `sizes` bytes each. Nothing is read before it is asked for."""

    def __init__(self, folder: Path, places: Sequence[Place], sizes: Sequence[int]) -> None:
        files = _document(folder)["files"]
        self._files = [_mapped(folder / name) for name in files]
        self._where: dict[tuple[int, int], tuple[int, int, int]] = {}
        ends = [0] * len(files)
        for slot, ((text, row), size) in enumerate(zip(places, sizes, strict=True)):
            file = slot % len(files)
            self._where[id(text), row] = (file, ends[file], ends[file] + size)
            ends[file] += size

    def __contains__(self, place: Place) -> bool:
        return (id(place[0]), place[1]) in self._where

    def of(self, place: Place, dtype: torch.dtype) -> torch.Tensor:
        """One-dimensional."""
        file, start, stop = self._where[id(place[0]), place[1]]
        if start == stop:  # of nothing torch makes no view of another size
            return torch.empty(0, dtype=dtype)
        return torch.from_numpy(self._files[file][start:stop].copy()).view(dtype)


def is_kept(folder: Path, inputs_sha256: str) -> bool:
    """Whether `folder` has what an earlier start of the same run computed."""
    return (folder / f"{folder.name}.json").exists() and _document(folder)["inputs_sha256"] == inputs_sha256


def cache_rows(
    folder: Path,
    places: Sequence[Place],
    inputs_sha256: str,
    compute: Callable[[Batch], torch.Tensor],
    facts: Callable[[torch.Tensor], dict[str, Any]],
    what: str,
) -> dict[str, Any]:
    """Keep what `compute` makes of each place, the same on all ranks and none twice, unless `folder` has it already.

    Every rank calls this, and `compute` equally often: for a batch without a row where it has none left. Returns the `facts` of what was
    computed, which are kept beside it. Raises RunError, which names `what`, when a rank could not write.
    """
    if not is_kept(folder, inputs_sha256):
        _write(folder, places, inputs_sha256, compute, facts, what)
    return _document(folder)


@torch.no_grad()
def _write(
    folder: Path, places: Sequence[Place], inputs_sha256: str, compute: Callable[[Batch], torch.Tensor],
    facts: Callable[[torch.Tensor], dict[str, Any]], what: str,
) -> None:  # fmt: skip
    building = folder.with_name(f".tmp-{folder.name}")
    if distributed.rank() == 0:
        for old in (folder, building):
            shutil.rmtree(old, ignore_errors=True)
        building.mkdir(parents=True)
    distributed.barrier()
    names = [f"rank-{rank:05d}.bin" for rank in range(distributed.world_size())]
    file, reason = building / names[distributed.rank()], ""
    made = torch.empty(0)
    with file.open("wb") as stream:
        for own, _ in rounds(len(places), 1):
            batches = [text.batch([row]) for text, row in places[own.start : own.stop]]
            made = compute(batches[0] if batches else empty_batch(1, places[0][0].row_length)).cpu().contiguous()
            if batches and not reason:
                try:
                    stream.write(made.flatten().view(torch.uint8).numpy().data)
                    stream.flush()
                except OSError as error:  # the others still count on this rank's collectives
                    reason = str(error)
    failed = torch.tensor([float(bool(reason))], device=distributed.device())
    if distributed.sum_over_ranks(failed).item():
        raise RunError(f"{what} not written: free disk space, then `sani-dist resume`")
    fsync(file)
    distributed.barrier()
    if distributed.rank() == 0:
        document = {"inputs_sha256": inputs_sha256, "files": names, **facts(made)}
        path = building / f"{folder.name}.json"
        path.write_text(json.dumps(document, indent=1))
        fsync(path)
        fsync(building)
        building.rename(folder)
        fsync(folder.parent)
    distributed.barrier()


def _document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{folder.name}.json").read_text())
    return found


def _mapped(path: Path) -> np.ndarray:
    """An empty file cannot be mapped: that of a rank that had no row."""
    return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
