"""The text of a file: a regular one, unpacked (.gz, .zst) and decoded (UTF-8; UTF-16 and UTF-32 by their mark), or refused."""

from __future__ import annotations

import codecs
import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sani_dist.errors import InputError

COMPRESSIONS = (".gz", ".zst")
# The marks of UTF-32 come first: the little-endian one begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def kind_of(name: str) -> str:
    """The suffix that says what is in a file, in lower case and without that of a compression: `.csv` for `A.CSV.gz`."""
    name = name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return os.path.splitext(name)[1]


def check_regular(path: Path, where: str) -> None:
    """Raise `InputError` unless `path` is a regular file: to open a pipe would wait for ever, and a device may have no end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such path"
        raise InputError(f"cannot read {where} ({reason})") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{where} is no regular file (a folder, pipe, device or socket); copy it to a file first")


@contextmanager
def opened(path: Path, where: str) -> Iterator[IO[bytes]]:
    """The unpacked content. Raises `InputError`, which names the file by `where`, also for a damaged one."""
    check_regular(path, where)
    compression = path.suffix.lower()
    try:
        if compression == ".zst":
            import pyarrow as pa

            with pa.OSFile(str(path)) as packed, pa.CompressedInputStream(packed, "zstd") as stream:
                yield io.BufferedReader(stream)
        else:
            with gzip.open(path, "rb") if compression == ".gz" else path.open("rb") as file:
                yield io.BufferedReader(file)  # type: ignore[arg-type]
    except (EOFError, zlib.error, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"cannot read {where} ({error.strerror})") from None
        if compression not in COMPRESSIONS:
            raise
        raise InputError(f"{where} cannot be unpacked ({type(error).__name__}); it is cut or damaged") from None


def text_lines(path: Path, where: str) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line with its end). Raises `InputError` for what is not text in one of the encodings above."""
    number = 0
    with opened(path, where) as stream:
        encoding = _encoding(stream)
        lines: Iterable[bytes | str] = stream if encoding is None else io.TextIOWrapper(stream, encoding, newline="\n")
        try:
            for number, line in enumerate(lines, 1):
                if ("\0" if isinstance(line, str) else b"\0") in line:  # type: ignore[operator]
                    raise InputError(
                        f"{where}: line {number} has NUL characters, as UTF-16 without a byte order mark has; "
                        "save it as UTF-8, for example with `iconv -f UTF-16LE -t UTF-8`"
                    )
                yield number, line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            if encoding is not None:
                raise InputError(f"{where}: line {number + 1} is not valid {encoding}") from None
            raise InputError(
                f"{where}: line {number} is not valid UTF-8; save it as UTF-8, for example with "
                "`iconv -f WINDOWS-1252 -t UTF-8`"
            ) from None


def read_text(path: Path, where: str) -> str:
    """The whole text of a file, as `text_lines` reads it."""
    return "".join(line for _, line in text_lines(path, where))


def _encoding(stream: Any) -> str | None:
    """What the mark at the start names; None: UTF-8."""
    start = stream.peek(4)[:4]
    return next((name for mark, name in _MARKS if start.startswith(mark)), None)
