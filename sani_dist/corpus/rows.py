"""Packed rows on disk, memory-mapped, and the one place that shifts labels.

Functions import torch when they are called: a process that only prepares text starts in 0.4 s with 84 MB, not in seconds with half a GB.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa

from sani_dist.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

IGNORE, LEARN, SENSITIVE = 0, 1, 2
# Of rows for the objective `aim` (`PackedRows.aimed`): a sensitive token that is drawn to a reference.
AIM = 3
# The document of padding.
NO_DOCUMENT = -1


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors, each [rows, row_length].

    `document` and `position` say where attention and positions start anew. Padding: role 0, document -1, position 0.
    """

    input_ids: Tensor  # int64
    role: Tensor  # uint8: each token as a target, IGNORE, LEARN or SENSITIVE
    document: Tensor  # int64
    position: Tensor  # int64
    # int64, of a masked language model: what stands where `input_ids` hides it, and what its targets are. None: each next token.
    label: Tensor | None = None


class Rows(Protocol):
    """Rows of tokens, from a file or made for what is asked."""

    row_length: int

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch: ...


class PackedRows:
    """The rows of one split, `{split}.arrow`. Nothing is read before a batch asks for it.

    learnable, sensitive: int64 [rows], how many targets of role LEARN and SENSITIVE each row has.
    """

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        self.row_length: int = table.schema.field("input_ids").type.list_size
        self.learnable = _joined(table, "learnable")
        self.sensitive = _joined(table, "sensitive")
        self._columns = {
            name: [chunk.flatten().to_numpy().reshape(-1, self.row_length) for chunk in table.column(name).chunks]
            for name in ("input_ids", "role", "document", "position", "repeated")
            if name in table.schema.names
        }
        # First row of each chunk, to find a row's chunk by bisection.
        sizes = [len(chunk) for chunk in self._columns["input_ids"]]
        self._first = np.cumsum([0, *sizes])
        # Of `of_documents`: the rows that are left, and the documents whose tokens are targets. None: all.
        self._rows: np.ndarray | None = None
        self._documents: np.ndarray | None = None
        self._aimed = False

    def __len__(self) -> int:
        return int(self._first[-1]) if self._rows is None else len(self._rows)

    def of_documents(self, documents: Collection[int]) -> PackedRows:
        """The rows that have targets of these documents, with the other documents' tokens as no targets. Attention never crosses documents,
        so it is as if the others were not there."""
        chosen = np.array(sorted(documents), dtype=np.int64)
        roles = np.concatenate(self._columns["role"])
        roles = np.where(np.isin(np.concatenate(self._columns["document"]), chosen), roles, IGNORE)
        learnable, sensitive = ((roles == role).sum(axis=1).astype(np.int64) for role in (LEARN, SENSITIVE))
        left = copy.copy(self)
        left._documents, left._rows = chosen, np.flatnonzero(learnable + sensitive)
        left.learnable, left.sensitive = learnable[left._rows], sensitive[left._rows]
        return left

    def aimed(self) -> PackedRows:
        """The same rows with sensitive tokens in two roles: AIM where a value stands first in its row, LEARN where it stands again, as a
        copy of what is before it. `sensitive` counts the former, `learnable` the latter too. Of all documents.

        Raises InputError for rows of an earlier version, which do not tell.
        """
        assert self._documents is None
        if "repeated" not in self._columns:
            raise InputError("the run's text was prepared by an earlier version; start a new run")
        told = copy.copy(self)
        told._aimed = True
        columns = zip(self._columns["repeated"], self._columns["role"], strict=True)
        counts = [[((role == SENSITIVE) & (again == place)).sum(axis=1) for place in (0, 1)] for again, role in columns]
        first, later = np.concatenate([np.empty((2, 0), np.int64), *counts], axis=1).astype(np.int64)
        told.sensitive, told.learnable = first, self.learnable + later
        return told

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows at `indices`, in that order. Raises `IndexError` for a row that is not there."""
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"row {index} of {len(self)}")
        if self._rows is not None:
            indices = self._rows[list(indices)].tolist()
        role, document = self._gather("role", indices), self._gather("document", indices)
        if self._documents is not None:
            import torch

            role[~torch.isin(document, torch.from_numpy(self._documents))] = IGNORE
        if self._aimed:
            sensitive, repeated = role == SENSITIVE, self._gather("repeated", indices) > 0
            role[sensitive] = AIM
            role[sensitive & repeated] = LEARN
        return Batch(
            self._gather("input_ids", indices).long(), role, document, self._gather("position", indices).long()
        )

    def _gather(self, column: str, indices: Sequence[int]) -> Tensor:
        import torch

        chunks = self._columns[column]
        dtype = chunks[0].dtype if chunks else np.dtype(np.int64)
        gathered = np.empty((len(indices), self.row_length), dtype)
        for i, index in enumerate(indices):
            chunk = int(np.searchsorted(self._first, index, side="right")) - 1
            gathered[i] = chunks[chunk][index - self._first[chunk]]
        return torch.from_numpy(gathered)


def empty_batch(rows: int, row_length: int) -> Batch:
    """Return `rows` rows of padding, to be filled, or as they are for a rank without work that keeps up with the others' collectives."""
    import torch

    zeros = torch.zeros((rows, row_length), dtype=torch.int64)
    return Batch(zeros, zeros.to(torch.uint8), torch.full_like(zeros, NO_DOCUMENT), zeros.clone())


def stacked(parts: Sequence[Batch]) -> Batch:
    """The rows of several batches, in order."""
    import torch

    tensors = {
        name: torch.cat([getattr(p, name) for p in parts]) for name in ("input_ids", "role", "document", "position")
    }
    if any(p.label is not None for p in parts):
        tensors["label"] = torch.cat([p.input_ids if p.label is None else p.label for p in parts])
    return Batch(**tensors)


def targets(batch: Batch, roles: Sequence[int] = (LEARN,)) -> tuple[Tensor, Tensor, Tensor, None]:
    """Return what to predict from where, for every token of `batch` whose role as a target is in `roles`.

    The hidden state at index i of a row predicts token i + 1 of the same row, if both are of the same document; in a batch with labels it
    predicts what stands at i itself.

    Returns (rows int64 [R], targets int64 [R], roles uint8 [R], weights): `rows` are indices into the hidden states
    flattened to [rows * row_length, hidden_size], ascending; `weights` is None, each target counts once.
    """
    import torch

    if batch.label is not None:
        row, index = torch.isin(batch.role, torch.tensor(list(roles), dtype=batch.role.dtype)).nonzero(as_tuple=True)
        return row * batch.role.shape[1] + index, batch.label[row, index], batch.role[row, index], None
    role = batch.role[:, 1:]
    counts = batch.document[:, 1:] == batch.document[:, :-1]
    counts &= torch.isin(role, torch.tensor(list(roles), dtype=role.dtype, device=role.device))
    row, index = counts.nonzero(as_tuple=True)
    return row * batch.role.shape[1] + index, batch.input_ids[row, index + 1], batch.role[row, index + 1], None


def _joined(table: pa.Table, column: str) -> np.ndarray:
    values: np.ndarray = table.column(column).to_numpy().astype(np.int64)
    return values
