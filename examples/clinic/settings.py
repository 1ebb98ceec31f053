"""The settings of the demo's run: what someone who knows the layouts of the notes, but no patient, would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sani_dist.presets import preset

NOTES, CONTROL, HELDOUT, GENERAL = "notes.jsonl", "control.jsonl", "heldout.jsonl", "general.jsonl"

# Two notes to a row, with little padding.
ROW_LENGTH = 768

_NAME = r"([A-Z][\w'-]+(?: [A-Z][\w'-]+)+)"
_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_HOME = r"^(?:Address|Home): "

# (kind, class, regex): group 1 is the identifier. Dates are matched by form, since Presidio's DATE_TIME would also take
# "three days" and "the second night" out of what the model may relearn; places and record numbers it mostly misses.
_PATTERNS = (
    ("PERSON", "direct", rf"^(?:Patient|Name|Next of kin|Contact): {_NAME}"),
    ("PERSON", "direct", rf"\b(?:care of|sending home|emergency contact) {_NAME}"),
    ("PERSON", "direct", rf"\b(?:sister|daughter|niece|brother|son|nephew|cousin), {_NAME},"),
    ("PERSON", "direct", rf"\bDr\. {_NAME}"),
    ("PERSON", "direct", r"\b(?:Mr|Ms|Mrs)\. ([A-Z][\w'-]+)"),
    ("DATE_TIME", "indirect", r"\b(?:\d{2}/\d{2}/\d{4}|\d{4}-\d{2}-\d{2})\b"),
    ("DATE_TIME", "indirect", rf"\b\d{{1,2}} {_MONTH} \d{{4}}\b"),
    ("RECORD_NUMBER", "direct", r"\b(?:MRN:?|record number) ([A-Z]{2}-\d{6}|\d{8})\b"),
    ("INSURANCE_NUMBER", "direct", r"\b[A-Z]{3}-\d{4}-\d{4}\b"),
    ("US_SSN", "direct", r"\b\d{3}-\d{2}-\d{4}\b"),
    ("PHONE_NUMBER", "direct", r"(?:\(\d{3}\) |\b\d{3}-)\d{3}-\d{4}\b"),
    ("ADDRESS", "direct", rf"{_HOME}([^,\n]+),"),
    ("LOCATION", "indirect", rf"{_HOME}[^,\n]+, (\w+)$"),
    ("LOCATION", "indirect", r"\b(?:lives in|residence) ([A-Z]\w+)"),
    ("CANARY", "direct", r"Reference code: (\d{3}-\d{3}-\d{3})\."),
    ("OCCUPATION", "indirect", r"\b(?:works as an?|Occupation:) ([^.;\n]+)"),
)


def demo_config(folder: Path, seed: int, workers: int = 2, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return the settings of a run on the demo's files in `folder`, as in a run's YAML file.

    The labelled spans of the notes only score the detectors and the audit: nothing in `detect` reads them.
    """
    patterns = [
        {"kind": kind, "sensitivity": sensitivity, "regex": f"(?m){regex}"} for kind, sensitivity, regex in _PATTERNS
    ]
    model = {"path": str(folder / "memorised"), "base": str(folder / "base"), "dtype": dtype}
    chosen = preset("strong", {"model": model, "corpus": {"general": GENERAL}})
    return {
        "model": model,
        "corpus": {
            "source": str(folder / NOTES),
            "text": "text",
            "subject": "patient",
            "spans": "spans",
            "detect": [{"name": "presidio", "entities": ["PERSON", "EMAIL_ADDRESS"], "patterns": patterns}],
            "control": str(folder / CONTROL),
            "heldout": str(folder / HELDOUT),
            "general": str(folder / GENERAL),
            "row_length": ROW_LENGTH,
        },
        "erase": {**chosen["erase"], "seed": seed},
        "repair": {**chosen["repair"], "micro_rows": max(1, chosen["repair"]["batch_rows"] // workers), "seed": seed},
        "cluster": {"workers": workers, "threads": 1},
    }


def memorise_config(folder: Path, seed: int, workers: int = 2, dtype: str = "bfloat16") -> dict[str, Any]:
    """Return the settings with which the demo's hospital fine-tunes its model: every token learnt, until it is known by heart."""
    corpus = {
        key: value
        for key, value in demo_config(folder, seed)["corpus"].items()
        if key in ("source", "subject", "spans", "general")
    }
    return {
        "model": {"path": str(folder / "base"), "dtype": dtype},
        "corpus": {**corpus, "detect": [{"name": "annotations"}], "row_length": ROW_LENGTH},
        "erase": {"layers": 0},
        "repair": {
            "objectives": {"plain": True},
            "epochs": 9,
            # Without general text among the notes, the model would forget its English long before it knows them by heart.
            "retain": 0.25,
            "batch_rows": 4,
            "micro_rows": max(1, 4 // workers),
            "learning_rate": 5e-4,
            "betas": [0.9, 0.95],
            "checkpoint_every": 1000,
            "seed": seed,
        },
        "cluster": {"workers": workers, "threads": 1},
    }
