"""The run that all others must equal: two ranks under torchrun."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sani_dist.config import Config, config_to_mapping
from sani_dist.files import file_sha256
from sani_dist.orchestrate.local import free_port

from .started import ROOT, finished, started


@pytest.fixture(scope="session")
def settings_file(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a tiny run on two ranks."""
    path = tmp_path_factory.mktemp("settings") / "run.yaml"
    path.write_text(yaml.safe_dump(config_to_mapping(make_config())))
    return path


@pytest.fixture(scope="session")
def undisturbed(settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of all files of the model that torchrun's two ranks export."""
    folder = tmp_path_factory.mktemp("torchrun")
    launch = [
        "torchrun",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        str(ROOT / "launch" / "worker.py"),
    ]
    finished(started([*launch, str(settings_file), "--out", str(folder / "run")], folder / "log"), folder / "log")
    return exported(folder / "run")


def exported(folder: Path) -> dict[str, str]:
    """Hashes of the exported files, by name. The model card tells dates, and is left out."""
    files = (path for path in (folder / "model").iterdir() if path.name != "README.md")
    return {path.name: file_sha256(path) for path in files}
