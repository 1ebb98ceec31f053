"""Weights in PyTorch's `.bin` files, read as byte ranges like safetensors.

A `.bin` file is an archive whose entries are not compressed, so that each tensor lies in it as it does in memory. torch's restricted
unpickler, which makes nothing but tensors, says where; no value is read for that.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sani_dist.engine.stored_tensor import DTYPE_NAMES, StoredTensor
from sani_dist.errors import InputError


def read_pickled_header(file: Path) -> Iterator[StoredTensor]:
    """The tensors of one file. Raises InputError for one that holds anything else, is of before PyTorch 1.6, or is not whole."""
    try:
        with FakeTensorMode():
            found = torch.load(file, weights_only=True)
        tensors = dict(found)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError):
        raise InputError(f"{file}: not a file of tensors alone; save it again as safetensors") from None
    for name, tensor in tensors.items():
        # Where the storage begins in the file; files of before PyTorch 1.6 are no archives and have no such place.
        place = getattr(tensor.untyped_storage(), "_checkpoint_offset", None) if torch.is_tensor(tensor) else None
        if place is None or not tensor.is_contiguous() or tensor.dtype not in DTYPE_NAMES:
            raise InputError(f"{file}: {name} does not lie in it row by row; save the model again as safetensors")
        yield StoredTensor(
            str(name), tuple(tensor.shape), tensor.dtype, file, place + tensor.storage_offset() * tensor.itemsize
        )
