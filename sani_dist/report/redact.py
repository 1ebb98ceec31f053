"""Settings as they may be shown: what describes sensitive text is counted, not shown, and paths are cut to their last part."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

# Values and subjects are sensitive themselves; a regular expression or a prompt may spell a value out, an environment a password.
HIDDEN = ("values", "subjects", "regex", "prompts", "runtime_env")


def redacted(settings: Any, name: str = "") -> Any:
    """Plain YAML types in, plain YAML types out."""
    if name in HIDDEN and settings:
        return f"({len(settings)}, not shown)" if isinstance(settings, list) else "(not shown)"
    if isinstance(settings, dict):
        return {key: redacted(value, key) for key, value in settings.items()}
    if isinstance(settings, list):
        return [redacted(value) for value in settings]
    # Folders of a machine often carry names of people and customers.
    return PurePath(settings).name if isinstance(settings, str) and PurePath(settings).is_absolute() else settings
