"""Settings of a sweep over a tiny run, with enough documents for every interval."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sani_dist.config import Config, config_to_mapping

from .. import tiny

MakeSweep = Callable[..., Path]


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Held-out and control documents beyond the ten that an interval needs."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(3)
    control = [tiny.note(draw, i % 3, tiny.CONTROL_PEOPLE, tiny.CONTROL_NUMBERS) for i in range(24)]
    heldout = [{"text": f"Visit {i}: the patient has a cough and is given rest and fluids."} for i in range(14)]
    paths = {}
    for name, lines in {"control": control, "heldout": heldout}.items():
        paths[name] = str(folder / f"{name}.jsonl")
        Path(paths[name]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


@pytest.fixture(scope="session")
def run_settings(make_config: Callable[..., Config], texts: dict[str, str]) -> dict[str, Any]:
    return config_to_mapping(make_config(model={"dtype": "float32"}, corpus=texts))


@pytest.fixture
def make_sweep(run_settings: dict[str, Any], tmp_path: Path) -> MakeSweep:
    """Write a sweep's file; keyword arguments are its keys."""

    def make(**keys: Any) -> Path:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump({"run": run_settings, "space": {"erase.layers": [1, 2]}, **keys}))
        return path

    return make
