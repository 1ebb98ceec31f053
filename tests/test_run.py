"""What a run folder knows of its settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sani_dist.config import Config, RepairSettings
from sani_dist.run import STAGES, Run


class LaterRepairSettings(RepairSettings):
    """Those of a version that knows one more, which does nothing unless it is asked for."""

    further: int = 0


class LaterConfig(Config):
    """The settings of that version."""

    repair: LaterRepairSettings = LaterRepairSettings()


def later(config: Config, **further: int) -> Config:
    return LaterConfig.model_validate({**config.model_dump(), "repair": {**config.repair.model_dump(), **further}})


def test_a_later_version_knows_the_run(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """Unless a setting says something else than what the run was made with."""
    run = Run.create(tmp_path / "run", make_config(), STAGES)
    assert Run(run.folder, later(run.config)).inputs_sha256("repair") == run.inputs_sha256("repair")
    assert Run(run.folder, later(run.config, further=1)).inputs_sha256("repair") != run.inputs_sha256("repair")
    other = run.config.model_copy(update={"repair": run.config.repair.model_copy(update={"seed": 99})})
    assert Run(run.folder, other).inputs_sha256("repair") != run.inputs_sha256("repair")
    assert Run(run.folder, other).inputs_sha256("erase") == run.inputs_sha256("erase")
