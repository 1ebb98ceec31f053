"""One command at a time in a run folder, and nothing in it for other eyes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from sani_dist.errors import InputError

LOCK = "lock"
# One that has just been killed may still be ending.
COMMAND_SECONDS = 2.0
# Ranks end when the command that started them is gone; until then they hold its lock.
RANKS_SECONDS = 30.0


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[int | None]:
    """Hold the lock of a run folder, which is there; what is written meanwhile is for its owner alone, whatever the umask.

    Yields the descriptor that holds it, for ranks to inherit; None on storage that has no locks. The lock ends with the last process that
    has it, however that ends. Raises InputError while another command has it.
    """
    before = os.umask(0o077)
    try:
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise InputError(f"cannot write into {folder} ({error.strerror})") from None
        try:
            locked = _acquire(descriptor, folder)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
            yield descriptor if locked else None
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
    finally:
        os.umask(before)


def _acquire(descriptor: int, folder: Path) -> bool:
    begun = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            who = _holder(descriptor)
            if time.monotonic() - begun > (COMMAND_SECONDS if who else RANKS_SECONDS):
                raise InputError(
                    f"{folder} is in use by {who or 'ranks that do not end'}: wait until that has ended, or end it"
                ) from None
            time.sleep(0.1)
        except OSError:
            return False


def _holder(descriptor: int) -> str | None:
    """The command that holds the lock; None when it has ended, and only its ranks are left."""
    pid, _, host = os.pread(descriptor, 1024, 0).decode(errors="replace").partition(" ")
    if not pid.isdigit():
        return None
    if host != socket.gethostname():
        return f"a command on {host}"
    with contextlib.suppress(psutil.Error):
        if psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE:
            return f"another command (process {pid})"
    return None
