"""Two things every part that writes a file needs: its hash, and certainty that it is on disk. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import time
from pathlib import Path

# A file changed within the clock tick in which it was hashed would look unchanged: only what has been still for longer is remembered.
_STILL_NS = 2 * 10**9
_hashes: dict[tuple[int, ...], str] = {}


def file_sha256(file: Path) -> str:
    """SHA-256 in hex. A file that has not changed since this process hashed it is not read again: checkpoints are large."""
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if state in _hashes:
            return _hashes[state]
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _STILL_NS:
        _hashes[state] = found
    return found


def allocate(descriptor: int, size: int) -> None:
    """Give an open file its size, and blocks where the file system can reserve them; raises OSError when the disk is full.

    Where it cannot (NFS before 4.2, some Lustre), the file is as long and takes no blocks yet. `os.posix_fallocate` would write into
    each of its pages there.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is not None:
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        if not size or fallocate(descriptor, 0, 0, size) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(number, os.strerror(number))
    os.ftruncate(descriptor, size)


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
