"""Files that the ranks of several hosts fill with their ranges, while one host alone writes each of them.

A client of NFS reads and writes back whole pages: of two hosts that write neighbouring ranges of one file, each can put back what the other
has overwritten. So a file has one host that writes it, the next file the next host. Its ranks write their own ranges, all at the same
time; ranges that no rank of that host owns come to it through the process group, a buffer at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sani_dist.engine import distributed
from sani_dist.engine.safetensors_files import (
    BUFFER_BYTES,
    PlannedFile,
    create_files,
    read_range,
    write_range,
)
from sani_dist.engine.shards import LiveShard
from sani_dist.engine.stored_tensor import StoredTensor
from sani_dist.errors import InputError
from sani_dist.files import fsync


class Piece(NamedTuple):
    """Elements [start, stop) of a tensor, which `owner` has and `writer` writes."""

    tensor: StoredTensor
    start: int
    stop: int
    owner: int
    writer: int


class HostFiles:
    """Planned files in `folder`, to be filled from the shards `live` of all ranks. Every rank makes one and calls its methods together."""

    def __init__(self, files: Sequence[PlannedFile], live: Sequence[LiveShard], folder: Path) -> None:
        self._files, self._folder = files, folder
        self._values = {item.shard.name: item for item in live}
        self._host_of = distributed.hosts()
        extents = torch.tensor([(item.shard.start, item.shard.stop) for item in live], dtype=torch.int64).view(-1, 2)
        gathered = distributed.gather_in_rank_order(extents).tolist()
        self._extents = [dict(zip(self._values, of_rank, strict=True)) for of_rank in gathered]

    def create(self) -> None:
        """On each host, its files at their full size. Raises OSError when the disk is full."""
        own = [file for number, file in enumerate(self._files) if self._writers(number)[0] == distributed.rank()]
        create_files(own, self._folder)

    def write(self) -> None:
        """Raises OSError where writing failed, after everything that other ranks wait for."""
        failure: OSError | None = None
        for piece in self._pieces():
            for start, part in self._handed_over(piece):
                try:
                    if failure is None:
                        write_range(piece.tensor, start, part)
                except OSError as error:
                    failure = error
        for number, file in enumerate(self._files):
            if failure is None and distributed.rank() in self._writers(number):
                fsync(self._folder / file.name)
        if failure is not None:
            raise failure

    def verify(self) -> None:
        """Raises OSError when what this rank owns is not what now lies on disk, whoever wrote it."""
        places = {tensor.name: tensor for file in self._files for tensor in file.tensors}
        for name, item in self._values.items():
            for start, part in _parts(places[name], item):
                found = torch.empty_like(part)
                with contextlib.suppress(InputError):  # it ends early
                    read_range(places[name], start, start + part.numel(), found)
                    if torch.equal(found.view(torch.uint8), part.view(torch.uint8)):
                        continue
                raise OSError(None, f"{places[name].file.name} does not hold what was written")

    def _writers(self, number: int) -> list[int]:
        """The ranks of the host that writes file `number`."""
        host = number % (max(self._host_of) + 1)
        return [rank for rank, of_rank in enumerate(self._host_of) if of_rank == host]

    def _pieces(self) -> Iterator[Piece]:
        """All pieces that this rank has a part in, in the order in which every rank goes through them, so that none waits in a circle."""
        for number, file in enumerate(self._files):
            writers = self._writers(number)
            others = [rank for rank in range(len(self._host_of)) if rank not in writers]
            for tensor in file.tensors:
                there: set[tuple[int, int]] = set()  # ranks may hold the same range
                for place, owner in enumerate((*writers, *others)):
                    start, stop = self._extents[owner][tensor.name]
                    writer = owner if owner in writers else writers[place % len(writers)]
                    if start < stop and (start, stop) not in there and distributed.rank() in (owner, writer):
                        yield Piece(tensor, start, stop, owner, writer)
                    there.add((start, stop))

    def _handed_over(self, piece: Piece) -> Iterator[tuple[int, torch.Tensor]]:
        """What this rank has to write of a piece, part by part: (first element, values). The owner sends, where it is another rank."""
        own = distributed.rank()
        if own == piece.owner:
            for start, part in _parts(piece.tensor, self._values[piece.tensor.name]):
                if own == piece.writer:
                    yield start, part
                else:
                    distributed.send(part.view(torch.uint8), piece.writer)
            return
        for start, stop in _steps(piece.tensor, piece.start, piece.stop):
            part = torch.empty(stop - start, dtype=piece.tensor.dtype)
            distributed.receive(part.view(torch.uint8), piece.owner)
            yield start, part


def _steps(tensor: StoredTensor, start: int, stop: int) -> Iterator[tuple[int, int]]:
    step = max(1, BUFFER_BYTES // tensor.dtype.itemsize)
    yield from ((first, min(first + step, stop)) for first in range(start, stop, step))


def _parts(tensor: StoredTensor, item: LiveShard) -> Iterator[tuple[int, torch.Tensor]]:
    """(first element, values on the CPU as they are stored, at most a buffer of them)."""
    for start, stop in _steps(tensor, item.shard.start, item.shard.stop):
        values = item.values[start - item.shard.start : stop - item.shard.start].detach()
        yield start, values.to(device="cpu", dtype=tensor.dtype).contiguous()
