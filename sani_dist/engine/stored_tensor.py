"""Where a tensor lies in a file, whatever the format of the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

# By the names that safetensors has for them.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies on disk: `offset` is the byte of `file` at which its first element starts."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)
