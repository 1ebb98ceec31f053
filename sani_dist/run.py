"""The run folder: what each stage wrote, and which stages are done.

A stage is done if and only if its `done.json` is there and fits: same inputs, and every output still has its hash. It is written last
and atomically, so a run can be killed at any moment and resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sani_dist.config import Config, GenerationSettings, config_from_mapping, config_to_mapping
from sani_dist.errors import InputError
from sani_dist.files import file_sha256, fsync, write_text
from sani_dist.stage_list import ORDER, sections_read

SCHEMA = 1
# Those of a run unless it is told which.
STAGES = tuple(stage for stage in ORDER if stage != "attack")
# What may hold sensitive text or weights that still remember it; `purge` removes it and leaves evidence and model.
SENSITIVE_CONTENT = (
    "corpus/documents.parquet",
    "corpus/review.csv",
    "tokens",
    "repair/checkpoints",
    "repair/trunk",
    "repair/.tmp-trunk",
    "repair/teacher",
    "repair/.tmp-teacher",
    "key",
)

PURGED = "(purged)"
# Tokens of `attack.related`.
RELATED = "tokens/related.arrow"


@contextlib.contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Count the seconds within into `Run.seconds`: of all starts that were not killed. The run may be created within."""
    started = time.monotonic()
    try:
        yield
    finally:
        if (folder / "run.json").exists():
            run = Run.open(folder)
            run.update(seconds=run.seconds + time.monotonic() - started)


class Run:
    """A run folder and its settings."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def create(cls, folder: Path, config: Config, stages: tuple[str, ...] = STAGES) -> Run:
        """Make a new run folder (mode 0700) with its key. Raises InputError when the folder holds something already.

        `stages`: those this run consists of; the others are skipped.
        """
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: choose another folder, or `sani-dist resume {folder}`")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(32))
        for name in ("logs", "corpus", "tokens", "audit", "erase", "repair"):
            (folder / name).mkdir(exist_ok=True)
        packages = ("torch", "deepspeed", "transformers", "sani_dist")
        run = cls(folder, config)
        versions = {package: version(package) for package in packages}
        run.update(
            schema=SCHEMA,
            stages=stages,
            versions=versions,
            code_sha256=code_sha256(),
            started=time.time(),
            status="started",
        )
        # Last: a folder with settings is a run.
        _write_atomically(folder / "config.yaml", yaml.safe_dump(config_to_mapping(config), sort_keys=False))
        return run

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Open a run folder. Raises InputError when it is none."""
        try:
            mapping = yaml.safe_load((folder / "config.yaml").read_text())
        except OSError as error:
            raise InputError(f"{folder} is not a run folder (no readable config.yaml)") from error
        return cls(folder, config_from_mapping(mapping))

    @property
    def key(self) -> bytes:
        try:
            return (self.folder / "key").read_bytes()
        except OSError as error:
            raise InputError(f"{self.folder}: its key is gone (purged?); start a new run") from error

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(json.loads(self.path("run.json").read_text())["stages"])

    def pending(self) -> list[str]:
        """The stages still to do, in order. A stage after one that is not done is not done either."""
        wanted = self.stages
        first = next((i for i, stage in enumerate(wanted) if not self.is_done(stage)), len(wanted))
        return list(wanted[first:])

    def update(self, **values: Any) -> None:
        """Merge values into run.json."""
        path = self.path("run.json")
        document = json.loads(path.read_text()) if path.exists() else {}
        _write_atomically(path, json.dumps({**document, **values}, indent=1))

    @property
    def seconds(self) -> float:
        """What `timed` counted; 0 where nobody did."""
        return float(json.loads(self.path("run.json").read_text()).get("seconds", 0))

    def add_attack(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Make `attack` a stage of this run, with other settings of the sections `attack` and `cluster`."""
        for section in ("attack", "cluster"):
            self._change(section, changes.get(section, {}))
        self.update(stages=[stage for stage in ORDER if stage in (*self.stages, "attack", "report")])

    def change_cluster(self, changes: Mapping[str, Any]) -> None:
        """Other `cluster` settings for what is still to do: they change no result. Raises InputError when they cannot be."""
        self._change("cluster", changes)

    def _change(self, section: str, changes: Mapping[str, Any]) -> None:
        mapping = config_to_mapping(self.config)
        self.config = config_from_mapping({**mapping, section: {**mapping[section], **changes}})
        _write_atomically(self.folder / "config.yaml", yaml.safe_dump(config_to_mapping(self.config), sort_keys=False))

    # Stages

    def inputs_sha256(self, stage: str) -> str:
        """Hash of all a stage depends on: its settings, the model's files, what the stages before it wrote, and text that only it reads."""
        digest = hashlib.sha256()
        digest.update(json.dumps(self._settings_of(stage), sort_keys=True, default=str).encode())
        if stage == "attack" and self.config.attack.related is not None and self.path(RELATED).exists():
            digest.update(file_sha256(self.path(RELATED)).encode())
        for before in ORDER[: ORDER.index(stage)]:
            done = self._done_path(before)
            if done.exists():
                digest.update(done.read_bytes())
        return digest.hexdigest()

    def is_done(self, stage: str) -> bool:
        """Whether `stage` finished with the inputs it would get now and its outputs are still what it wrote."""
        path = self._done_path(stage)
        if not path.exists():
            return False
        document = json.loads(path.read_text())
        if document["schema"] != SCHEMA or document["inputs_sha256"] != self.inputs_sha256(stage):
            return False
        return self.outputs_fit(stage)

    def outputs_fit(self, stage: str) -> bool:
        """Whether `stage` finished once and its outputs are still what it wrote, whatever its inputs are now."""
        path = self._done_path(stage)
        outputs = json.loads(path.read_text())["outputs"] if path.exists() else None
        return outputs is not None and all(
            self.path(name).exists() and file_sha256(self.path(name)) == sha for name, sha in outputs.items()
        )

    def outputs(self, stage: str) -> dict[str, str]:
        """What `stage` wrote, as name -> hash; nothing where it is not done."""
        path = self._done_path(stage)
        found: dict[str, str] = json.loads(path.read_text())["outputs"] if path.exists() else {}
        return found

    def mark_done(self, stage: str, outputs: Iterable[Path], known: Mapping[Path, str] | None = None) -> None:
        """Record that `stage` has finished. Called by one rank, after its outputs are on disk.

        `known`: outputs that are on disk for certain, with the hash they have: weights are not read once more for it.
        """
        hashes = {str(path.relative_to(self.folder)): sha for path, sha in (known or {}).items()}
        for path in outputs:
            fsync(path)
            hashes[str(path.relative_to(self.folder))] = file_sha256(path)
        document = {"schema": SCHEMA, "stage": stage, "inputs_sha256": self.inputs_sha256(stage), "outputs": hashes}
        self._done_path(stage).parent.mkdir(exist_ok=True)
        _write_atomically(self._done_path(stage), json.dumps(document, indent=1))

    def purge(self) -> list[str]:
        """Remove what holds sensitive text, or weights that still remember it. Returns what was removed."""
        removed = []
        for name in SENSITIVE_CONTENT:
            path = self.path(name)
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()
            else:
                continue
            removed.append(name)
        kept = yaml.safe_dump(_without_values(config_to_mapping(self.config)), sort_keys=False)
        if kept != self.path("config.yaml").read_text():
            _write_atomically(self.path("config.yaml"), kept)
            removed.append("values in config.yaml")
        return removed

    def _done_path(self, stage: str) -> Path:
        return self.path("done", f"{stage}.json")

    def _settings_of(self, stage: str) -> dict[str, Any]:
        """The settings a stage reads, beside those of the stages before it. `cluster` changes no result. What stands at its default is
        left out: a later version, with settings that this one has not, still knows the run."""
        mapping = self.config.model_dump(mode="json", exclude_defaults=True)
        names = sections_read(stage)
        if any(self.config.repair.text_of_epochs):  # `prepare` writes the text with surrogates
            names.append("repair")
        return {name: mapping[name] for name in names if name in mapping}


def code_sha256() -> str:
    """Hash of the modules of this package, names and contents: says which code made a run, released or not."""
    digest, package = hashlib.sha256(), Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()


def build(path: Path, write: Callable[[Path], None]) -> Path:
    """Write a file under a temporary name, force it to disk, and give it its name."""
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary)
    fsync(temporary)
    os.replace(temporary, path)
    fsync(path.parent)
    return path


def _without_values(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without the terms, values, subjects and prompts of the user's that stand in them."""
    parts = [*settings["corpus"]["detect"], settings["corpus"]["target"] or {}]
    generation = settings["audit"]["generation"]
    if tuple(generation["prompts"]) != GenerationSettings().prompts:
        parts.append(generation)
    for part in parts:
        for name in ("values", "subjects", "prompts"):
            if isinstance(part.get(name), list) and part[name]:
                part[name] = [PURGED] * len(part[name])  # their number is no secret, and the report tells it
    return settings


def _write_atomically(path: Path, text: str) -> None:
    build(path, partial(write_text, text))
