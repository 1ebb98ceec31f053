"""What a preset does, by what there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sani_dist.config import Config
from sani_dist.config_file import load_config
from sani_dist.presets import PRESETS, preset

BASE = "model.base=./base"
GENERAL = "corpus.general=general.jsonl"


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: ./model}\ncorpus: {source: notes.jsonl, detect: [{name: presidio}]}\n")
    return path


def loaded(settings_file: Path, *overrides: str, name: str | None = None) -> Config:
    return load_config(settings_file, list(overrides), name)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("overrides", [(), (GENERAL,), (BASE,), (BASE, GENERAL), ("model.adapter=./adapter",)])
def test_every_preset_is_valid_whatever_there_is(settings_file: Path, name: str, overrides: tuple[str, ...]) -> None:
    given = ("erase.reset=base",) if name == "paper" and "model.adapter=./adapter" in overrides else ()
    assert isinstance(loaded(settings_file, *overrides, *given, name=name), Config)


@pytest.mark.parametrize("there", [BASE, "model.adapter=./adapter"])
def test_with_a_base_a_run_begins_there(settings_file: Path, there: str) -> None:
    config = loaded(settings_file, there)
    assert config.erase.begins_at_base
    assert (config.repair.objectives.aim, config.repair.objectives.kl, config.reference) == (1, 1, "base")


def test_what_is_null_is_not_there(settings_file: Path) -> None:
    config = loaded(settings_file, "model.base=null", "model.adapter=null", "corpus.general=null")
    assert (config.erase.begins_at_base, config.repair.retain) == (False, 0)


def test_without_a_base_neurons_are_chosen_and_the_model_is_asked_among_others(settings_file: Path) -> None:
    config = loaded(settings_file)
    assert (config.erase.select, config.erase.reset) == ("attribution", "zero")
    assert (config.repair.objectives.aim, config.repair.objectives.kl, config.reference) == (1, 1, "others")


@pytest.mark.parametrize("key", ["layers=4", "fraction=0.1", "select=random", "units=heads"])
def test_who_chooses_neurons_does_not_begin_at_the_base(settings_file: Path, key: str) -> None:
    config = loaded(settings_file, BASE, f"erase.{key}")
    assert not config.erase.begins_at_base
    assert config.reference == "base"


def test_general_text_is_mixed_in_where_there_is_some(settings_file: Path) -> None:
    assert loaded(settings_file).repair.retain == 0
    assert loaded(settings_file, GENERAL).repair.retain > 0
    assert loaded(settings_file, GENERAL, "repair.retain=0").repair.retain == 0


def test_objectives_of_the_file_are_all_there_are(settings_file: Path) -> None:
    objectives = loaded(settings_file, "repair.objectives.unlikelihood=2").repair.objectives
    assert (objectives.unlikelihood, objectives.aim) == (2, 0)


def test_presets_differ_in_epochs() -> None:
    assert [preset(name, {})["repair"]["epochs"] for name in ("balanced", "strong")] == [1, 3]


@pytest.mark.parametrize("base", [False, True])
def test_a_masked_model_is_not_drawn_to_anything(settings_file: Path, base: bool) -> None:
    """Its sensitive tokens are never hidden in training."""
    folder = settings_file.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    config = loaded(settings_file, *([BASE] if base else []))
    objectives = config.repair.objectives
    assert (objectives.aim, objectives.kl, objectives.unlikelihood) == (0, 0, 0)
    assert config.erase.begins_at_base == base
    assert config.erase.reset == ("base" if base else "init")


@pytest.mark.parametrize("content", ["[1]", "{", '{"architectures": 3}', '{"architectures": [3]}', "null", "[" * 9999])
def test_a_damaged_config_is_left_to_who_opens_the_model(settings_file: Path, content: str) -> None:
    folder = settings_file.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    assert loaded(settings_file).repair.objectives.aim == 1


@pytest.mark.parametrize("given", [{"model": 3}, {"corpus": None, "erase": [1]}, {"model": {"path": ["x"]}}])
def test_sections_of_a_wrong_type_are_left_to_the_settings(given: dict[str, Any]) -> None:
    assert preset("balanced", given)["erase"]["select"] == "attribution"
