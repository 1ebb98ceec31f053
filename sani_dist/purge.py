"""Remove what a run left with sensitive content, wherever it lies: a folder may be a link to another disk, a start may have been killed
while it wrote, and the settings may be damaged."""

from __future__ import annotations

import os
import re
import stat
from functools import partial
from pathlib import Path

import yaml

from sani_dist.config_file import config_from_mapping, config_to_mapping, read_mapping, without_values
from sani_dist.errors import InputError, RunError
from sani_dist.files import file_sha256, write_text
from sani_dist.lock import alone
from sani_dist.run import SENSITIVE_CONTENT, STAGES, Run, build

# Where a start that was killed may have left a file, or a folder, under its temporary name.
_PARENTS = ("", "audit", "corpus", "done", "erase", "logs", "report", "repair", "repair/*", "tokens", "tokens/*")
# What a run writes into folders that may be links, and nothing else there is its own.
_WRITTEN = re.compile(
    r"tokens/(epoch-\d{3}/[a-z_]+\.(arrow|parquet)|related\.arrow)"
    r"|repair/checkpoints/(\.tmp-)?step-\d{6,}/(state\.json|rank-\d{5}\.safetensors)"
    r"|repair/(\.tmp-)?(trunk|teacher)/(rank-\d{5}\.bin|(trunk|teacher)\.json)"
    r"|(.+/)?\.tmp-[^/]+"
)


def purge(folder: Path) -> list[str]:
    """Remove text, tokens, checkpoints, key and the values in the settings; returns what was removed.

    Raises InputError for a folder that is no run, or in which a command is at work; RunError, which names it, for what is left.
    """
    if not any((folder / name).exists() for name in ("config.yaml", "run.json", "key")):
        raise InputError(f"{folder} is not a run folder")
    with alone(folder):
        temporary = {
            p.relative_to(folder).as_posix() for parent in _PARENTS for p in folder.glob(f"{parent}/.tmp-*".lstrip("/"))
        }
        removed, left = [], list[str]()
        for name in dict.fromkeys((*SENSITIVE_CONTENT, "logs/ray", *sorted(temporary))):
            if os.path.lexists(folder / name):
                kept = _remove(folder, folder / name, name, linked=False)
                left += kept
                removed += [] if kept else [name]
        try:
            removed += _purge_settings(folder / "config.yaml")
        except OSError:
            left.append("config.yaml")
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise RunError(
            f"{folder}: not removed: {', '.join(left[:3])}{more} (no right to, or nothing that the run wrote); remove it by hand"
        )
    return removed


def _remove(run: Path, path: Path, name: str, linked: bool) -> list[str]:
    """Remove `path`, of which the run knows as `name`; returns the names of what is left of it. `linked`: a link led there."""
    try:
        if path.is_symlink():
            if linked or (path.is_file() and not _is_recorded(run, path, name)):
                return [name]
            left = _remove(run, path.resolve(), name, linked=True) if path.exists() else []
            if not left:
                path.unlink()
            return left
        if path.is_dir():
            left = [
                rest for child in sorted(path.iterdir()) for rest in _remove(run, child, f"{name}/{child.name}", linked)
            ]
            if not left:
                path.rmdir()
            return left
        if linked and not (
            stat.S_ISREG(path.stat().st_mode) and (_WRITTEN.fullmatch(name) or _is_recorded(run, path, name))
        ):
            return [name]
        path.unlink()
        return []
    except OSError:
        return [name]


def _is_recorded(run: Path, path: Path, name: str) -> bool:
    """Whether a stage of the run wrote a file of this name and content."""
    try:
        found = (Run.record_of(run, stage) for stage in STAGES)
        return any(record is not None and record["outputs"].get(name) == file_sha256(path) for record in found)
    except InputError:
        return False


def _purge_settings(path: Path) -> list[str]:
    """Take the values out of the settings; what cannot be read goes as a whole."""
    if not os.path.lexists(path):
        return []
    if path.is_symlink():
        raise OSError("a link: what it leads to may be the user's own file")
    try:
        config = config_from_mapping(read_mapping(path, "model, corpus"))
    except InputError:
        path.unlink()
        return ["config.yaml, which cannot be read"]
    kept = yaml.safe_dump(without_values(config_to_mapping(config)), sort_keys=False)
    if kept == path.read_text():
        return []
    build(path, partial(write_text, kept))
    return ["values in config.yaml"]
