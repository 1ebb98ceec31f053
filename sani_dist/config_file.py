"""Settings files: read from YAML, changed by `--set a.b=c`, completed by a preset, checked against `config.py`.

A wrong setting raises `InputError` with one line that names the field and what would be right; the wrong value itself is
not repeated, since a term list or a target value may be sensitive.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Hashable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import ValidationError

from sani_dist import presets
from sani_dist.config import Config, GenerationSettings, Settings
from sani_dist.errors import InputError

AnySettings = TypeVar("AnySettings", bound=Settings)


def load_config(path: Path, overrides: list[str] | None = None, preset: str | None = None) -> Config:
    """Read a YAML file; a preset fills what the file leaves out, `overrides` (`a.b=c`) win over both.

    Which preset: `preset`, else that of the file, else the default. Relative paths are taken from the folder of the file.
    Raises InputError with one line that names the field.
    """
    mapping = read_mapping(path, "model, corpus, erase, repair")
    return config_beside(mapping, path.resolve().parent, overrides, preset)


def config_beside(
    mapping: dict[str, Any], folder: Path, overrides: Sequence[str] | None = None, preset: str | None = None
) -> Config:
    """The same of what stands in a file of `folder`."""
    given = copy.deepcopy(mapping)
    named = given.pop("preset", None)
    for override in overrides or []:
        _override(given, override)
    given = _resolve_paths(given, folder)
    return config_from_mapping(_merge(presets.preset(preset or named or presets.DEFAULT_PRESET, given), given))


def read_mapping(path: Path, keys: str) -> dict[str, Any]:
    """A YAML file of settings. Raises InputError for one that cannot be read, or has no keys; `keys`: such as it should have."""
    try:
        mapping = yaml.safe_load(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise InputError(f"{path} is not YAML" + (f" (line {line + 1})" if line is not None else "")) from None
    if not isinstance(mapping, dict):
        raise InputError(f"{path}: expected keys such as {keys}")
    return mapping


def cluster_changes(overrides: Sequence[str]) -> dict[str, Any]:
    """`--set cluster.a=b` of a run that is resumed, as {"a": b}. Raises InputError for settings of other sections: they are the run's."""
    of_cluster: dict[str, Any] = changes_of(overrides, ("cluster",)).get("cluster", {})
    return of_cluster


def changes_of(overrides: Sequence[str], sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`--set section.a=b` of a run that has begun, as {"section": {"a": b}}. Raises InputError for other sections."""
    changes: dict[str, Any] = {}
    for override in overrides:
        _override(changes, override)
    if set(changes) - set(sections) or not all(isinstance(change, dict) for change in changes.values()):
        named = " and ".join(f"`{section}`" for section in sections)
        raise InputError(
            f"--set: of a run that has begun, only {named} settings can change; start a new run for others"
        )
    return changes


def config_from_mapping(mapping: dict[str, Any]) -> Config:
    """Validate the settings of a run. Raises InputError: `erase.fraction: ...`, never repeating the value given."""
    return validated(Config, _without_removed(mapping))


def validated(model: type[AnySettings], mapping: dict[str, Any]) -> AnySettings:
    """The same for any settings."""
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = _shown([part for part in first["loc"] if part not in _DETECTORS], model) or "settings"
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"].startswith("union_tag_"):  # missing, or wrong: pydantic's own message repeats the value
            message = f"name must be one of {', '.join(_DETECTORS)}"
        if first["type"] == "extra_forbidden":
            message = f"unknown key; known here: {_known_keys(model, first['loc'][:-1])}"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise InputError(f"{place}: {message}{more}") from None


def _without_removed(mapping: dict[str, Any]) -> dict[str, Any]:
    """Without what 0.1 wrote into the settings of every run. Raises InputError for a value that asks for what is gone."""
    mapping = dict(mapping)
    for name, default, instead in _REMOVED:
        section, key = name.split(".")
        settings = mapping.get(section)
        if not isinstance(settings, dict) or key not in settings:
            continue
        if settings[key] != default:
            raise InputError(f"{name} was removed in 0.2.0: {instead}")
        mapping[section] = {other: value for other, value in settings.items() if other != key}
    if mapping.get("tracking") == {}:
        del mapping["tracking"]
    if isinstance(mapping.get("erase"), dict) and mapping["erase"].get("select") == "integrated_gradients":
        raise InputError("erase.select: integrated_gradients was removed in 0.2.0; use attribution")
    return mapping


def config_to_mapping(config: Config) -> dict[str, Any]:
    """Settings as plain YAML types."""
    mapping: dict[str, Any] = config.model_dump(mode="json")
    return mapping


# Settings of 0.1 that are gone: their default, which is what happens now, and what to do about any other value.
_REMOVED: tuple[tuple[str, Any, str], ...] = (
    ("erase.budget", "per_layer", "each layer loses the share `erase.fraction`; leave it out"),
    ("erase.integration_steps", 5, "use `erase.select: attribution` and leave it out"),
    ("tracking.to", ["tensorboard"], "curves for TensorBoard are always in logs/ of the run folder; leave it out"),
    ("tracking.project", "sani_dist", "TensorBoard needs none; leave it out"),
)
# Settings that are values or may spell one out: a regular expression or a prompt a name, an environment a password.
VALUES = ("values", "subjects", "regex", "prompts", "runtime_env")
PURGED = "(purged)"


def without_values(settings: Any, name: str = "") -> Any:
    """Plain YAML types without the values in them. Their number is no secret, and the report tells it."""
    if name == "prompts" and tuple(settings) == GenerationSettings().prompts:
        return settings
    if name in VALUES and settings:
        return [PURGED] * len(settings) if isinstance(settings, list) else {} if isinstance(settings, dict) else PURGED
    if isinstance(settings, dict):
        return {key: without_values(value, key) for key, value in settings.items()}
    return [without_values(value) for value in settings] if isinstance(settings, list) else settings


_DETECTORS = ("annotations", "terms", "presidio", "rare_terms")
_PATHS = (
    "model.path",
    "model.adapter",
    "model.base",
    "corpus.source",
    "corpus.spans",
    "corpus.heldout",
    "corpus.control",
    "corpus.general",
    "audit.reference",
    "attack.gold",
    "attack.related",
    "cluster.ds_config",
)


def _shown(place: Sequence[int | str], model: type[Settings] | None = None) -> str:
    """The dotted name of a setting. A key that no word of the settings is like is left out: it may be a value in the wrong place."""
    return ".".join(str(part) if _is_word(str(part), model or Config) else "(a key)" for part in place)


def _is_word(key: str, model: type[Settings]) -> bool:
    words = _words_of(model)
    known = all(part in words or part.isdigit() for part in re.split("[_.]", key))
    return known or (key.islower() and bool(get_close_matches(key, words, cutoff=0.8)))


@cache
def _words_of(model: Hashable) -> frozenset[str]:
    """The names of all settings within, and the words that describe them."""
    words: set[str] = set()
    if isinstance(model, type) and issubclass(model, Settings):
        for name, field in model.model_fields.items():
            words |= {
                name,
                *re.findall("[a-z]+", f"{name} {field.description}"),
                *_words_of(cast(Hashable, field.annotation)),
            }
    return frozenset(words.union(*map(_words_of, get_args(model))))


def _known_keys(model: Any, place: tuple[int | str, ...]) -> str:
    for part in place:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return "see `sani-dist run --help`"
        model = field.annotation
    return ", ".join(model.model_fields) if hasattr(model, "model_fields") else "see `sani-dist run --help`"


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _override(mapping: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    keys = name.split(".")
    if not separator or not all(keys):
        raise InputError("--set: expected section.key=value, for example --set repair.epochs=3")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        raise InputError(f"--set {_shown(keys)}: the value is not YAML") from None
    try:
        put(mapping, name, value)
    except InputError as error:
        raise InputError(f"--set {_shown(keys)}: {error}") from None


def put(mapping: dict[str, Any], name: str, value: Any) -> None:
    """Set what a dotted name such as `repair.epochs` stands for. Raises InputError where a part of it is no section."""
    *sections, key = name.split(".")
    for section in sections:
        mapping = mapping.setdefault(section, {})
        if not isinstance(mapping, dict):
            raise InputError(f"{_shown([section])} is not a section")
    mapping[key] = value


def _resolve_paths(mapping: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths that exist beside the settings file become absolute; anything else (a hub id) stays as it is."""
    for dotted in _PATHS:
        section, key = dotted.split(".")
        value = mapping.get(section, {}).get(key) if isinstance(mapping.get(section), dict) else None
        if not isinstance(value, str) or os.path.isabs(value):
            continue
        # With a folder that exists a path is local, though mistyped: never the name of a dataset elsewhere.
        local = (folder / value).exists() or ("/" in value and (folder / value).parent.exists())
        if section == "model" or (local and (key != "spans" or "/" in value or "." in value)):
            mapping[section][key] = str(folder / value)
    corpus = mapping.get("corpus")
    for detector in corpus.get("detect") or [] if isinstance(corpus, dict) else []:
        if isinstance(detector, dict) and isinstance(detector.get("path"), str):
            detector["path"] = str(folder / detector["path"])
    return mapping
