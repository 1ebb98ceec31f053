"""Two things every part that writes a file needs: its hash, and certainty that it is on disk. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Force a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(text: str, path: Path) -> None:
    """Write a file in UTF-8. The path comes last, as for what builds a file under a temporary name."""
    path.write_text(text, encoding="utf-8")
