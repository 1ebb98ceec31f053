"""Safetensors as files of byte ranges: any flat range of any tensor is read or written without touching the rest.

Format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}}, then the data, row-major.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sani_dist.engine.pickled_files import read_pickled_header
from sani_dist.engine.stored_tensor import DTYPE_NAMES, DTYPES, StoredTensor
from sani_dist.errors import InputError
from sani_dist.files import allocate, file_sha256

# How transformers names weight files.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

# What transformers wants to read in a header beside the tensors.
METADATA = {"format": "pt"}

# One read of a rank. Larger buffers do not read faster; smaller ones cost more system calls.
BUFFER_BYTES = 16 * 2**20


class Checkpoint:
    """The tensors of a Hugging Face folder: one `model.safetensors`, or the files of `model.safetensors.index.json`."""

    def __init__(self, folder: Path, allow_pickle: bool = False, names: Sequence[str] = ()) -> None:
        """Read the headers only. Raises InputError for a missing, truncated or corrupt checkpoint.

        `allow_pickle`: a folder without safetensors may have its weights in `.bin` files. `names`: those of its files, if not as above.
        """
        self.folder = folder
        self.files = [_regular(folder / name) for name in names] or _weight_files(folder, allow_pickle)
        self.tensors: dict[str, StoredTensor] = {}
        for tensor in (tensor for file in self.files for tensor in _read_header(file)):
            if tensor.name in self.tensors:
                raise InputError(
                    f"{folder}: {tensor.name} is stored in {self.tensors[tensor.name].file.name} and in {tensor.file.name}; "
                    "expected each tensor once: export the model again"
                )
            self.tensors[tensor.name] = tensor

    def read_into(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Fill `out` [stop - start] with the flat elements [start, stop) of tensor `name`, converted to its dtype.

        Costs one buffer of at most `BUFFER_BYTES` beside `out`, whatever the size of the tensor.
        """
        read_range(self.tensors[name], start, stop, out)

    def sha256(self) -> str:
        """Hash of the names and contents of all weight files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(file.name.encode() + b"\0" + bytes.fromhex(file_sha256(file)))
        return digest.hexdigest()


def _read_header(file: Path) -> Iterator[StoredTensor]:
    if file.suffix == ".safetensors":
        return read_header(file)
    # `_weight_files` gives no others without `allow_pickle`.
    return read_pickled_header(file)


def _weight_files(folder: Path, allow_pickle: bool) -> list[Path]:
    """Those that `from_pretrained` reads: a single file before an index, safetensors before pickled ones."""
    if not folder.is_dir():
        raise InputError(f"model.path: no folder {folder}; expected a Hugging Face checkpoint with safetensors")
    for single, index in ((SINGLE, INDEX), (PICKLED, PICKLED_INDEX)):
        there = next((folder / name for name in (single, index) if (folder / name).exists()), None)
        if there is None:
            continue
        if single == PICKLED and not allow_pickle:
            break
        return [_regular(there)] if there.name == single else _indexed(there, Path(single).suffix)
    if any(folder.glob("*.bin")) and not allow_pickle:
        raise InputError(
            f"{folder}: only pickled weights (.bin); save it as safetensors, or set model.allow_pickle (--allow-pickle) to read "
            "its tensors with torch's restricted unpickler"
        )
    raise InputError(f"{folder}: no {SINGLE} and no {INDEX}")


def _indexed(index: Path, suffix: str) -> list[Path]:
    """The files that an index names, regular files of its folder. Raises InputError for any other, and for a tensor that is not where
    the index says."""
    wrong = "not a safetensors index" if suffix == ".safetensors" else "not an index of weight files"
    try:
        document = json.loads(_regular(index).read_bytes(), object_pairs_hook=_once)
        weight_map = {str(name): str(file) for name, file in document["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index}: {wrong}; export the model again") from error
    files = {name: _inside(index, name, suffix) for name in sorted(set(weight_map.values()))}
    stored = {name: {tensor.name for tensor in _read_header(file)} for name, file in files.items()}
    for tensor, name in weight_map.items():
        if tensor not in stored[name]:
            raise InputError(f"{index}: {tensor} is not in {name}, where the index says it is; export the model again")
    return list(files.values())


def _inside(index: Path, name: str, suffix: str) -> Path:
    """The file `name` of an index: what it names may not lead out of the model's folder, nor to another format."""
    if not name.endswith(suffix) or "\0" in name:
        raise InputError(
            f"{index}: names a file that is not {suffix}; expected weights in one format: export the model again"
        )
    folder, file = index.parent.resolve(), index.parent / name
    allowed = [folder]
    if folder.parent.name == "snapshots":  # the hub's cache, whose snapshots are links to its blobs
        allowed.append(folder.parent.parent / "blobs")
    if Path(name).is_absolute() or ".." in Path(name).parts or not any(map(_regular(file).resolve().is_relative_to, allowed)):  # fmt: skip
        raise InputError(f"{index}: names a file outside of the model's folder; copy the whole model into one folder")
    return file


def _regular(file: Path) -> Path:
    """Raises InputError for what is there and no regular file: opening a pipe would wait for ever."""
    try:
        there = file.stat()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(there.st_mode):
        raise InputError(f"{file}: no regular file; expected weights")
    return file


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that stands in it twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def read_header(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one file. Raises InputError when header and file size disagree, as after an interrupted copy."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header_bytes = struct.unpack("<Q", stream.read(8))[0]
            if header_bytes > size - 8:
                raise ValueError
            header = json.loads(stream.read(header_bytes), object_pairs_hook=_once)
        header.pop("__metadata__", None)
        unknown = [name for name, entry in header.items() if entry["dtype"] not in DTYPES]
        if unknown:
            raise InputError(
                f"{file}: {unknown[0]} is stored as {header[unknown[0]]['dtype']}, a quantised format; expected plain weights"
            )
        tensors = [
            StoredTensor(
                name, tuple(entry["shape"]), DTYPES[entry["dtype"]], file, 8 + header_bytes + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        ]
        for tensor, entry in zip(tensors, header.values(), strict=True):
            first, last = entry["data_offsets"]
            sizes_fit = last - first == tensor.numel * tensor.dtype.itemsize and min(first, *tensor.shape, 0) == 0
            if not sizes_fit:
                raise ValueError
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise InputError(f"{file}: not a whole safetensors file; copy or export it again") from None
    if size != 8 + header_bytes + end:
        raise InputError(f"{file}: {size} bytes, but its header says {8 + header_bytes + end}; copy or export it again")
    yield from tensors


def read_metadata(file: Path) -> dict[str, str]:
    """What the header of a whole file says beside its tensors; empty if nothing."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def read_range(tensor: StoredTensor, start: int, stop: int, out: torch.Tensor) -> None:
    """Fill `out` with the flat elements [start, stop) of a stored tensor, converted to `out`'s dtype and device."""
    itemsize = tensor.dtype.itemsize
    step = max(1, min(BUFFER_BYTES // itemsize, stop - start))
    buffer = np.empty(step * itemsize, dtype=np.uint8)
    with tensor.file.open("rb", buffering=0) as stream:
        stream.seek(tensor.offset + start * itemsize)
        for first in range(start, stop, step):
            count = min(step, stop - first)
            view = buffer.data[: count * itemsize]
            while view.nbytes:
                read = stream.readinto(view)
                if not read:
                    raise InputError(f"{tensor.file}: ends early; copy or export it again")
                view = view[read:]
            values = torch.from_numpy(buffer[: count * itemsize]).view(tensor.dtype)
            out[first - start : first - start + count].copy_(values)


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors have the same shape and elements. Reads them a buffer at a time, unless they are one."""
    if one.shape != other.shape or (one.file, one.offset) == (other.file, other.offset):
        return one.shape == other.shape
    step = BUFFER_BYTES // 8
    for start in range(0, one.numel, step):
        values = [torch.empty(min(step, one.numel - start), dtype=tensor.dtype) for tensor in (one, other)]
        for tensor, out in zip((one, other), values, strict=True):
            read_range(tensor, start, start + len(out), out)
        if not torch.equal(*values):
            return False
    return True


@dataclass(frozen=True)
class PlannedFile:
    """One safetensors file to be written: its header and where each tensor goes."""

    name: str
    header: bytes
    tensors: tuple[StoredTensor, ...]
    total_bytes: int


def plan_files(
    tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]], folder: Path, file_bytes: int = 5 * 2**30, stem: str = "model",
    metadata: Mapping[str, str] = METADATA,
) -> list[PlannedFile]:  # fmt: skip
    """Lay tensors out in files of at most `file_bytes` (a larger tensor gets its own), named as Hugging Face names them.

    Every rank computes the same plan, so that all can write at once. `metadata`: what each header says beside its tensors.
    """
    groups: list[list[tuple[str, tuple[int, ...], torch.dtype]]] = [[]]
    filled = 0
    for name, shape, dtype in tensors:
        nbytes = math.prod(shape) * dtype.itemsize
        if groups[-1] and filled + nbytes > file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape, dtype))
        filled += nbytes
    files = []
    for number, group in enumerate(groups, start=1):
        single = len(groups) == 1
        file_name = f"{stem}.safetensors" if single else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        offsets = []
        for name, shape, dtype in group:
            nbytes = math.prod(shape) * dtype.itemsize
            entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + nbytes]}
            offsets.append(end)
            end += nbytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
        header = struct.pack("<Q", len(text)) + text
        stored = tuple(
            StoredTensor(name, shape, dtype, folder / file_name, len(header) + offset)
            for (name, shape, dtype), offset in zip(group, offsets, strict=True)
        )
        files.append(PlannedFile(file_name, header, stored, len(header) + end))
    return files


def create_files(files: Iterable[PlannedFile], folder: Path) -> None:
    """Create planned files at their full size with their headers. A full disk fails here, before any rank writes, where it can reserve."""
    for file in files:
        with (folder / file.name).open("wb") as stream:
            allocate(stream.fileno(), file.total_bytes)
            stream.write(file.header)


def write_range(tensor: StoredTensor, start: int, values: torch.Tensor) -> None:
    """Write `values` (one-dimensional) as the flat elements of a created tensor that begin at `start`."""
    itemsize = tensor.dtype.itemsize
    step = max(1, BUFFER_BYTES // itemsize)
    with tensor.file.open("r+b", buffering=0) as stream:
        stream.seek(tensor.offset + start * itemsize)
        for first in range(0, values.numel(), step):
            part = values[first : first + step].detach().to(device="cpu", dtype=tensor.dtype).contiguous()
            view = part.view(torch.uint8).numpy().data
            while view.nbytes:
                view = view[stream.write(view) :]
