"""Which files a source of text names. Nothing is guessed: what is left out of a folder is counted, what is ambiguous is refused."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sani_dist.corpus.lines import COMPRESSIONS, check_regular, kind_of
from sani_dist.errors import InputError

# Kinds of files by suffix; files of one kind are read together.
KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".txt": "txt",
    ".xml": "xml",
}
# Documents rather than tables: a record each, named by their file and folder.
DOCUMENTS = ("txt", "xml")
_EXPECTED = ".jsonl, .json, .csv, .tsv, .parquet, .txt, .xml or .conll, also with .gz or .zst"
_PAPER = re.compile(
    r"(readme|licen[cs]e|copying|copyright|terms.of.use)([-_. ].*)?|notice|changelog|citation|authors|index"
    r"|(md5|sha1|sha256|sha512|check)sums?|dataset_infos?|croissant",
    re.IGNORECASE,
)
_TRAIN = re.compile(r"(.*[-_. ])?(train|training)([-_. 0-9].*)?", re.IGNORECASE)
_TEST = re.compile(r"(.*[-_. ])?(test|testing|dev|valid|validation|val|eval|evaluation)([-_. 0-9].*)?", re.IGNORECASE)
_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_SUFFIX = re.compile(r".*\.[A-Za-z][A-Za-z0-9]{0,7}")


@dataclass(frozen=True)
class Source:
    """What a source names. Files are in the order of their paths, and of one kind. `name`: of the folder, or of the hub's dataset."""

    form: Literal["file", "folder", "saved", "hub"]
    kind: str = ""
    files: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    name: str = ""
    # Of brat: the annotations of a text, by its path without suffixes.
    annotations: dict[Path, Path] = field(default_factory=dict)

    def annotations_of(self, text: Path) -> Path | None:
        """The file of brat beside a text."""
        return self.annotations.get(_unpacked(text).with_suffix(""))

    def said(self) -> str | None:
        """What of a folder is read and what is left out, in numbers; None where there was nothing to choose."""
        if self.form != "folder":
            return None
        ignored = ", ".join(f"{count} {why}" for why, count in sorted(self.ignored.items()))
        return f"{len(self.files)} .{self.kind} files are read; ignored: {ignored or 'nothing'}"


def locate(source: str) -> Source:
    """Find what `source` names. Raises `InputError`; a name goes to the hub only as `org/name` or after `hf://`."""
    if source.startswith("hf://"):
        return Source("hub", name=source.removeprefix("hf://").removeprefix("datasets/"))
    path = Path(source)
    try:
        if path.is_dir():
            if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
                return Source("saved", files=[path])
            return _folder(path, shown(source))
        if path.exists() or path.is_symlink():
            check_regular(path, shown(source))
            return Source("file", _kind(path, shown(source)), [path])
    except OSError as error:
        raise InputError(f"cannot read {shown(source)} ({error.strerror or type(error).__name__})") from None
    if _HUB.fullmatch(source) and not _SUFFIX.fullmatch(source) and not path.parent.exists():
        return Source("hub", name=source)
    raise InputError(f"{shown(source)} does not exist (a dataset of the hub is written org/name or hf://org/name)")


def shown(source: str) -> str:
    """A path as a message can hold it."""
    return source if source.isprintable() else ascii(source)[1:-1]


def _kind(path: Path, where: str) -> str:
    kind = KINDS.get(kind_of(path.name))
    if kind is None or (kind == "parquet" and path.suffix.lower() in COMPRESSIONS):
        raise InputError(f"{where}: unknown kind of file; expected {_EXPECTED}, or a folder")
    return kind


def _folder(folder: Path, where: str) -> Source:
    ignored: Counter[str] = Counter()
    found: dict[str, list[Path]] = {}
    annotations: dict[Path, Path] = {}
    for entry in _entries(folder, ignored):
        kind = KINDS.get(suffix := kind_of(entry.name))
        if entry.name.startswith("."):
            ignored["hidden"] += 1
        elif not entry.is_file():
            ignored["links to folders or nothing, pipes or devices"] += 1
        elif _PAPER.fullmatch(entry.name.partition(".")[0]):
            ignored["licences, readmes or checksums"] += 1
        elif suffix == ".ann":
            path = Path(entry.path)
            annotations[_unpacked(path).with_suffix("")] = path
        elif kind is None:
            ignored["of other kinds"] += 1
        else:
            found.setdefault(kind, []).append(Path(entry.path))
    if not found:
        raise InputError(f"{where} holds no .txt files and is not a `datasets` folder; expected files {_EXPECTED}")
    if len(found) > 1:
        kinds = " and ".join(f"{len(files)} .{kind}" for kind, files in sorted(found.items()))
        raise InputError(f"{where} holds files of several kinds ({kinds}); name one file, or a folder with one kind")
    ((kind, files),) = found.items()
    files.sort(key=lambda path: path.parts)
    if kind not in DOCUMENTS:
        files = _training_files(folder, files, ignored)
    packed = any(path.suffix.lower() in COMPRESSIONS for path in files)
    if packed and len({_unpacked(path) for path in files}) < len(files):
        raise InputError(f"{where} holds a file twice, packed and unpacked; remove one of them")
    texts = {_unpacked(path).with_suffix("") for path in files} if kind == "txt" and annotations else set()
    ignored["annotations without a text"] += len(annotations.keys() - texts)
    beside = {text: annotations[text] for text in annotations.keys() & texts}
    return Source("folder", kind, files, +ignored, str(folder), beside)


def _entries(folder: Path, ignored: Counter[str]) -> Iterator[os.DirEntry[str]]:
    """All that is no folder, below `folder`. Links to folders are not followed: they may lead round in a circle."""
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif entry.name.startswith(".") or entry.name == "__MACOSX":
                    ignored["hidden"] += 1
                else:
                    waiting.append(entry.path)


def _training_files(folder: Path, files: list[Path], ignored: Counter[str]) -> list[Path]:
    """Without those of other splits, where names tell the training split, as `datasets` has it."""

    def of(split: re.Pattern[str], path: Path) -> bool:
        return any(split.fullmatch(part) for part in path.relative_to(folder).parts)

    train = [path for path in files if of(_TRAIN, path)]
    if not train:
        return files
    others = [path for path in files if path not in set(train) and of(_TEST, path)]
    ignored["of test or validation"] += len(others)
    return [path for path in files if path not in set(others)]


def _unpacked(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
