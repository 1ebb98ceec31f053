"""Files get their size at once: reserved where the file system can, and not by writing every page where it cannot."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sani_dist.files import allocate

MIB = 2**20


@pytest.fixture
def without_fallocate(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot reserve blocks: ramfs."""
    folder = tmp_path / "ramfs"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "ramfs", "ramfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a ramfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resident_pages(path: Path) -> int:
    """Pages of a file that are in memory: those that were written, where memory is all there is."""
    done = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "PAGES", str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout or 0)


def test_blocks_are_reserved(small_disk: Path) -> None:
    with (small_disk / "file").open("wb") as stream:
        allocate(stream.fileno(), 8 * MIB)
        assert os.fstat(stream.fileno()).st_size == 8 * MIB
        assert os.fstat(stream.fileno()).st_blocks * 512 == 8 * MIB
        with pytest.raises(OSError, match="No space") as full:
            allocate(stream.fileno(), 64 * MIB)
    assert full.value.errno == errno.ENOSPC


def test_where_none_can_be_reserved_no_page_is_written(without_fallocate: Path) -> None:
    path = without_fallocate / "file"
    with path.open("w+b") as stream:
        allocate(stream.fileno(), 8 * MIB)
        assert os.fstat(stream.fileno()).st_size == 8 * MIB
        assert resident_pages(path) == 0
        os.posix_fallocate(stream.fileno(), 0, MIB)  # what it would have been
        assert resident_pages(path) == 256


def test_an_empty_file_stays_empty(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        allocate(stream.fileno(), 0)
    assert (tmp_path / "file").stat().st_size == 0
