"""Presets: what is done where a settings file does not say, by what there is.

| there is | erase | repair, where identifiers stand |
|---|---|---|
| the base: `model.base`, or an adapter | every parameter becomes the base's | drawn to the base |
| no base | neurons of the last layers, by attribution | drawn to the model itself among other identities |
| a masked language model | all of it to the base's, else half of the last layer anew | left out |

Elsewhere they learn the text's ordinary tokens and, if there is any, general text, and are held to what the model to sanitise says there.
`paper` is the setting of the publication (arXiv 2510.21322) whatever there is. Why the others are what they are: docs/forgetting.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sani_dist.errors import InputError

DEFAULT_PRESET = "balanced"
PRESETS = ("paper", "balanced", "strong")

_PAPER: dict[str, Any] = {
    "erase": {"layers": 1, "fraction": 0.5, "select": "random", "reset": "init"},
    "repair": {"epochs": 2, "retain": 0.0},
}
_TO_BASE: dict[str, Any] = {"layers": 1, "select": "everything", "reset": "base"}
_NEURONS: dict[str, Any] = {"layers": 8, "fraction": 0.03, "select": "attribution", "reset": "zero"}
_REPAIR: dict[str, Any] = {"objectives": {"aim": 1.0, "kl": 1.0}, "batch_rows": 6, "learning_rate": 5e-4}
_EPOCHS = {"balanced": 1, "strong": 3}
# Settings of `erase` that choose neurons: who gives one does not want all of the model reset.
_CHOOSES = ("layers", "fraction", "select", "relative_to", "reset", "units")


def preset(name: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a preset stands for. given: settings of the same form, which will win over these.

    Raises InputError for a name that is none.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: unknown; choose one of {', '.join(PRESETS)}")
    if name == "paper":
        return copy.deepcopy(_PAPER)
    model, corpus, erase, repair = (_section(given, section) for section in ("model", "corpus", "erase", "repair"))
    has_base = bool(model.get("base") or model.get("adapter")) and not any(key in erase for key in _CHOOSES)
    chosen = {"erase": _TO_BASE if has_base else _NEURONS, "repair": _REPAIR}
    if _is_masked(model.get("path")):
        chosen = {"erase": _TO_BASE if has_base else _PAPER["erase"], "repair": {**_REPAIR, "objectives": {}}}
    chosen["repair"] = {**chosen["repair"], "epochs": _EPOCHS[name], "retain": 0.5 if corpus.get("general") else 0.0}
    if "objectives" in repair:  # some do not go together: those that are given are all there are
        del chosen["repair"]["objectives"]
    return copy.deepcopy(chosen)


def _section(given: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = given.get(name)
    return section if isinstance(section, Mapping) else {}


def _is_masked(path: object) -> bool:
    """Whether a folder's config.json names a masked language model. What is wrong with it is told where the model is opened."""
    try:
        names = json.loads((Path(str(path)) / "config.json").read_text()).get("architectures") or ()
        return any(str(name).endswith("ForMaskedLM") for name in names)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False
