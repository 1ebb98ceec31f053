"""Settings as they may be shown: what describes sensitive text is counted, not shown, and paths are cut to their last part."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from sani_dist.config_file import VALUES


def redacted(settings: Any, name: str = "") -> Any:
    """Plain YAML types in, plain YAML types out."""
    if name in VALUES and settings:
        return f"({len(settings)}, not shown)" if isinstance(settings, list) else "(not shown)"
    if isinstance(settings, dict):
        return {key: redacted(value, key) for key, value in settings.items()}
    if isinstance(settings, list):
        return [redacted(value) for value in settings]
    # Folders of a machine often carry names of people and customers.
    return PurePath(settings).name if isinstance(settings, str) and PurePath(settings).is_absolute() else settings
