"""The space of a sweep: which points there are, and what is refused before anything starts."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from sani_dist.errors import InputError
from sani_dist.sweep.settings import Point, load_sweep, points, trial_config

from .conftest import MakeSweep

LAUNCH = Path(__file__).parents[2] / "launch"


def test_lists_give_every_combination_once(make_sweep: MakeSweep) -> None:
    settings = load_sweep(make_sweep(space={"erase.layers": [1, 2, 3], "repair.objectives.unlikelihood": [0, 0.5]}))
    found = [tuple(point.values.values()) for point in points(settings)]
    assert sorted(found) == [(layers, weight) for layers in (1, 2, 3) for weight in (0, 0.5)]


def test_more_points_of_a_larger_budget_follow_those_of_a_smaller_one(make_sweep: MakeSweep) -> None:
    spaces: list[dict[str, Any]] = [
        {"erase.layers": [1, 2, 3], "repair.epochs": [1, 2]},
        {"erase.layers": [1, 2, 3], "erase.fraction": {"low": 0.01, "high": 0.5, "log": True}},
    ]
    for space in spaces:
        few, many = (points(load_sweep(make_sweep(space=space, budget={"points": n}))) for n in (3, 5))
        assert many[:3] == few
        assert len(many) == 5


def test_a_range_is_kept_and_whole_ends_give_whole_numbers(make_sweep: MakeSweep) -> None:
    space = {"erase.layers": {"low": 1, "high": 3}, "erase.fraction": {"low": 0.001, "high": 1.0, "log": True}}
    found = [point.values for point in points(load_sweep(make_sweep(space=space, budget={"points": 60})))]
    assert {type(values["erase.layers"]) for values in found} == {int}
    assert set(Counter(values["erase.layers"] for values in found)) == {1, 2, 3}
    fractions = [values["erase.fraction"] for values in found]
    assert all(0.001 <= fraction <= 1 for fraction in fractions)
    # As many in each of three decades, but for chance.
    assert all(8 <= count <= 32 for count in Counter(math.floor(math.log10(f)) for f in fractions).values())


def test_a_space_with_fewer_points_than_asked_for_ends(make_sweep: MakeSweep) -> None:
    space = {"erase.layers": {"low": 1, "high": 2}}
    assert len(points(load_sweep(make_sweep(space=space, budget={"points": 9})))) == 2


def test_a_point_changes_its_settings_and_the_seeds_alone(make_sweep: MakeSweep) -> None:
    settings = load_sweep(make_sweep())
    config = Point(0, {"erase.layers": 2, "repair.objectives": {"unlikelihood": 1, "floor": 0.01}}).config(
        settings.run, 7
    )
    assert (config.erase.layers, config.erase.seed, config.repair.seed) == (2, 7, 7)
    assert (config.repair.objectives.unlikelihood, config.repair.objectives.floor) == (1, 0.01)
    assert config.repair.epochs == settings.run.repair.epochs
    assert config.audit == settings.run.audit
    trial = trial_config(settings, Point(0, {}), 7)
    assert (trial.audit.metrics, trial.audit.samples) == (("extraction",), (100,))
    assert trial.audit.micro_rows == settings.run.audit.micro_rows
    assert trial.repair.look
    assert not config.repair.look  # what is chosen is written without


def test_a_run_may_be_a_file_beside_the_sweep(make_sweep: MakeSweep, run_settings: dict[str, Any]) -> None:
    path = make_sweep(run="run.yaml")
    (path.parent / "run.yaml").write_text(yaml.safe_dump({"preset": "paper", **run_settings}))
    assert load_sweep(path).run.model.path == Path(run_settings["model"]["path"])


@pytest.mark.parametrize("name", ["sweep_demo.yaml", "sweep_full.yaml"])
def test_the_files_to_start_from_are_good(make_sweep: MakeSweep, run_settings: dict[str, Any], name: str) -> None:
    document = yaml.safe_load((LAUNCH / name).read_text())
    settings = load_sweep(make_sweep(**{**document, "run": run_settings}))
    assert len(points(settings)) == document["budget"]["points"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"space": {}}, "`space` needs at least one setting"),
        ({"space": {"model.path": ["a"]}}, "`space` is of settings of erase and repair"),
        ({"space": {"erase": [{"layers": 1}]}}, "`space` is of settings of erase and repair"),
        ({"space": {"erase.seed": [1, 2]}}, "`space`: erase.seed is set by `seeds`"),
        ({"space": {"erase.layers": []}}, "space.erase.layers: expected values to try, such as [4, 8], or a range"),
        ({"space": {"erase.layers": 3}}, "space.erase.layers: expected values to try"),
        ({"space": {"erase.fraction": {"low": 0.5, "high": 0.1}}}, "space.erase.fraction: expected values to try"),
        ({"space": {"erase.fraction": {"low": 0.1, "high": 0.5}}}, "budget.points is needed"),
        ({"space": {"erase.share": [0.1]}}, "space: at erase.share=0.1: erase.share: unknown key; known here: layers,"),
        ({"space": {"erase.reset": ["base"]}}, "space: at erase.reset=base: settings: erase.reset=base needs model.base"),
        ({"space": {"repair.objectives.floor": [0.1, 0.2]}}, "(and 1 more points that cannot be)"),
        ({"space": {"repair.epochs.x": [1]}}, "space: at repair.epochs.x=1: epochs is not a section"),
        ({"limits": {"max_leak": 0.1}}, "limits.max_leak: unknown key; known here: max_utility_loss, max_general_loss"),
        ({"seeds": []}, "seeds: "),
        ({"budget": {"hours": 0}}, "budget.hours: Input should be greater than 0"),
        ({"parallel": 0}, "parallel: "),
        ({"run": None}, "run: "),
        ({"run": "nowhere.yaml"}, "cannot read "),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_one_line(make_sweep: MakeSweep, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_sweep(make_sweep(**keys))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_sweep_compares_has_to_be_in_the_corpus(make_sweep: MakeSweep, run_settings: dict[str, Any]) -> None:
    def without(*names: str) -> dict[str, Any]:
        return {**run_settings, "corpus": {**run_settings["corpus"], **dict.fromkeys(names)}, "repair": {"retain": 0}}

    for run, limits, message in (
        ({**run_settings, "cluster": {"launcher": "ray"}}, {}, "cluster.launcher has to be local"),
        (without("control"), {}, "corpus.control is needed"),
        (without("general", "heldout"), {}, "corpus.general or corpus.heldout is needed"),
        (without("heldout"), {"max_utility_loss": 0.1}, "limits.max_utility_loss needs corpus.heldout"),
    ):
        with pytest.raises(InputError, match=message):
            load_sweep(make_sweep(run=run, limits=limits))
