"""The run folder: what each stage wrote, and which stages are done.

A stage is done if and only if its `done.json` is there and fits: same inputs, and every output still has its hash. It is written last
and atomically, so a run can be killed at any moment and resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from sani_dist.config import Config
from sani_dist.config_file import PURGED, config_from_mapping, config_to_mapping, read_mapping, without_values
from sani_dist.errors import InputError
from sani_dist.files import file_sha256, fsync, write_text
from sani_dist.lock import LOCK
from sani_dist.stage_list import ORDER, sections_read

SCHEMA = 2
# Those of a run unless it is told which.
STAGES = tuple(stage for stage in ORDER if stage != "attack")
# What may hold sensitive text or weights that still remember it; `purge` removes it and leaves evidence and model.
SENSITIVE_CONTENT = (
    "corpus/documents.parquet",
    "corpus/review.csv",
    "corpus/review",
    "tokens",
    "repair/checkpoints",
    "repair/trunk",
    "repair/.tmp-trunk",
    "repair/teacher",
    "repair/.tmp-teacher",
    "repair/reference",
    "repair/.tmp-reference",
    "key",
)

_SKELETON = ("logs", "corpus", "tokens", "audit", "erase", "repair")
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

    # Of the command that holds the folder's lock: the descriptor, which its ranks inherit.
    lock: int | None = None

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.config = config

    @classmethod
    def create(cls, folder: Path, config: Config, stages: tuple[str, ...] = STAGES) -> Run:
        """Make a new run folder (mode 0700) with its key. Raises InputError when the folder holds something already.

        `stages`: those this run consists of; the others are skipped.
        """
        make_folder(folder)
        folder.chmod(0o700)
        key = folder / "key"
        key.unlink(missing_ok=True)  # of a start that was killed before there was a run
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(32))
        for name in _SKELETON:
            (folder / name).mkdir(mode=0o700, exist_ok=True)
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
        if not (folder / "config.yaml").is_file():
            raise InputError(f"{folder} is not a run folder (no readable config.yaml)")
        try:
            return cls(folder, config_from_mapping(read_mapping(folder / "config.yaml", "model, corpus")))
        except InputError as error:
            raise InputError(
                f"{folder} has damaged settings: {error}; restore config.yaml, or start a new run"
            ) from None

    @property
    def key(self) -> bytes:
        try:
            return (self.folder / "key").read_bytes()
        except OSError:
            raise InputError(f"{self.folder}: its key is gone (purged?); start a new run") from None

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.state["stages"])

    def pending(self) -> list[str]:
        """The stages still to do, in order. A stage after one that is not done is not done either."""
        wanted = self.stages
        first = next((i for i, stage in enumerate(wanted) if not self.is_done(stage)), len(wanted))
        return list(wanted[first:])

    def update(self, **values: Any) -> None:
        """Merge values into run.json."""
        path = self.path("run.json")
        document = self.state if path.exists() else {}
        _write_atomically(path, json.dumps({**document, **values}, indent=1))

    @property
    def seconds(self) -> float:
        """What `timed` counted; 0 where nobody did."""
        return float(self.state.get("seconds", 0))

    @property
    def state(self) -> dict[str, Any]:
        """What run.json says: stages, versions, times. Raises InputError when it is gone or damaged."""
        found = read_json(self.path("run.json"))
        stages = found.get("stages")
        if not isinstance(stages, list) or not stages or not set(map(str, stages)) <= set(ORDER):
            raise InputError(f"{self.path('run.json')} is damaged; restore it, or start a new run")
        return found

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

    def inputs_sha256(self, stage: str, key: bytes | None = None) -> str:
        """Hash of all a stage depends on: its settings, the model's files, what the stages before it wrote, and text that only it reads.

        `key`: that of the value hashes, if not the run's own.
        """
        digest = hashlib.sha256()
        digest.update(json.dumps(self._settings_of(stage, key), sort_keys=True).encode())
        if stage == "attack" and self.config.attack.related is not None and self.path(RELATED).exists():
            digest.update(file_sha256(self.path(RELATED)).encode())
        for before in ORDER[: ORDER.index(stage)]:
            done = self._done_path(before)
            if done.exists():
                digest.update(done.read_bytes())
        return digest.hexdigest()

    def is_done(self, stage: str) -> bool:
        """Whether `stage` finished with the inputs it would get now and its outputs are still what it wrote."""
        record = self.record(stage)
        if record is None or record["schema"] != SCHEMA or record["inputs_sha256"] != self.inputs_sha256(stage):
            return False
        return self.outputs_fit(stage)

    def outputs_fit(self, stage: str) -> bool:
        """Whether `stage` finished once and its outputs are still what it wrote, whatever its inputs are now."""
        return self.record(stage) is not None and all(
            self.path(name).exists() and file_sha256(self.path(name)) == sha
            for name, sha in self.outputs(stage).items()
        )

    def record(self, stage: str) -> dict[str, Any] | None:
        """What `done/` says of a stage; None where it has not finished, or its file is damaged."""
        return self.record_of(self.folder, stage)

    @staticmethod
    def record_of(folder: Path, stage: str) -> dict[str, Any] | None:
        """The same of a folder whose settings may be damaged."""
        with contextlib.suppress(InputError):
            found = read_json(folder / "done" / f"{stage}.json")
            if {"schema", "inputs_sha256", "outputs"} <= set(found) and isinstance(found["outputs"], dict):
                return found
        return None

    def difference(self) -> str | None:
        """What of a finished run is not as its stages left it, in words; None where all is.

        Text, tokens and checkpoints are not looked at: a purged run has none. Raises InputError for run folders that are damaged.
        """
        for stage in (stage for stage in self.stages if stage not in ("attack", "report")):
            record = self.record(stage)
            if record is None or record["schema"] != SCHEMA:
                return f"stage {stage} is not done, or its file in done/ was changed"
            for section, sha in self._settings_of(stage).items():
                if record.get("settings", {}).get(section) != sha:
                    return f"config.yaml: section `{section}` is not what stage {stage} ran with"
            if record["inputs_sha256"] != self.inputs_sha256(stage):
                return f"what stage {stage} started from was changed"
            for name, sha in record["outputs"].items():
                if not _is_sensitive(name) and not (self.path(name).is_file() and file_sha256(self.path(name)) == sha):
                    return f"{name} is not what stage {stage} wrote"
        added = self._added_to_model() if "export" in self.stages else []
        return f"model/ has {len(added)} files that the run did not write" if added else None

    def _added_to_model(self) -> list[str]:
        """Files beside those exported that could make another model of the folder; cards, licences and such may stay."""
        known = self.outputs("export")
        there = (path.relative_to(self.folder).as_posix() for path in self.path("model").rglob("*") if path.is_file())
        return [
            n
            for n in there
            if n not in known and Path(n).suffix not in (".md", "") and Path(n).name != ".gitattributes"
        ]

    def outputs(self, stage: str) -> dict[str, str]:
        """What `stage` wrote, as name -> hash; nothing where it is not done."""
        record = self.record(stage)
        found: dict[str, str] = {} if record is None else record["outputs"]
        return found

    def mark_done(self, stage: str, outputs: Iterable[Path], known: Mapping[Path, str] | None = None) -> None:
        """Record that `stage` has finished. Called by one rank, after its outputs are on disk.

        `known`: outputs that are on disk for certain, with the hash they have: weights are not read once more for it.
        """
        hashes = {str(path.relative_to(self.folder)): sha for path, sha in (known or {}).items()}
        for path in outputs:
            fsync(path)
            hashes[str(path.relative_to(self.folder))] = file_sha256(path)
        settings = self._settings_of(stage)
        macs = {section: mac for section in settings if (mac := self._values_mac(section, None))}
        document = {
            "schema": SCHEMA, "stage": stage, "inputs_sha256": self.inputs_sha256(stage), "settings": settings, "values": macs,
            "outputs": hashes,
        }  # fmt: skip
        self._done_path(stage).parent.mkdir(exist_ok=True)
        _write_atomically(self._done_path(stage), json.dumps(document, indent=1))

    def _done_path(self, stage: str) -> Path:
        return self.path("done", f"{stage}.json")

    def _settings_of(self, stage: str, key: bytes | None = None) -> dict[str, str]:
        """Hashes of the sections of the settings that a stage reads, beside those of the stages before it. `cluster` changes no result."""
        names = sections_read(stage)
        if any(self.config.repair.text_of_epochs):  # `prepare` writes the text with surrogates
            names.append("repair")
        return {name: self._section_sha256(name, key) for name in dict.fromkeys(names)}

    def _section_sha256(self, name: str, key: bytes | None) -> str:
        """Without the values themselves, which could be guessed from a hash: they come in by `_values_mac`."""
        plain = json.dumps(without_values(self._section(name)), sort_keys=True)
        return hashlib.sha256(f"{plain}\0{self._values_mac(name, key)}".encode()).hexdigest()

    def _section(self, name: str) -> Any:
        """What stands at its default is left out: a later version, with settings that this one has not, still knows the run."""
        return self.config.model_dump(mode="json", exclude_defaults=True).get(name, {})

    def _values_mac(self, name: str, key: bytes | None) -> str:
        """HMAC, under the run's key, of a section with values in it, else "". In `done/` it outlives values and key."""
        section = self._section(name)
        plain = without_values(section)
        if section != plain:
            return hmac.digest(key or self.key, json.dumps(section, sort_keys=True).encode(), "sha256").hex()
        if PURGED not in json.dumps(plain):
            return ""
        records = (self.record(stage) for stage in ORDER)
        return next((str(r["values"][name]) for r in records if r is not None and name in r.get("values", {})), "")


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


def make_folder(folder: Path) -> None:
    """Make the folder of a new run. Raises InputError when it holds something already, or belongs to somebody else.

    What a start left that was killed before there was a run does not count.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = list(folder.iterdir())
        owner = folder.stat().st_uid
    except OSError as error:
        raise InputError(f"cannot make the folder {folder} ({error.strerror})") from None
    if owner != os.geteuid():
        raise InputError(f"{folder} belongs to another user: choose another folder")
    if any(not _is_of_a_start(path) for path in held):
        raise InputError(f"{folder} is not empty: choose another folder, or `sani-dist resume {folder}`")


def _is_of_a_start(path: Path) -> bool:
    """Whether a start leaves it before there is a run: one with settings is a run."""
    if path.is_dir() and not path.is_symlink():
        return path.name in _SKELETON and not any(path.iterdir())
    return path.name in (LOCK, "key", "run.json", ".tmp-run.json", ".tmp-config.yaml")


def _is_sensitive(name: str) -> bool:
    return any(name == content or name.startswith(f"{content}/") for content in SENSITIVE_CONTENT)


def read_json(path: Path) -> dict[str, Any]:
    """A file of the run folder. Raises InputError, which says what to do, when it is gone or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; restore it, or start a new run") from None
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged; restore it, or start a new run")
    return found


def _write_atomically(path: Path, text: str) -> None:
    build(path, partial(write_text, text))
