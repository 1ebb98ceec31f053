"""The folder of a sweep: what is shared, what is done, what is refused. Real runs, as far as they go without ranks."""

from __future__ import annotations

import pytest

from sani_dist.errors import InputError
from sani_dist.metrics import Metrics
from sani_dist.run import Run
from sani_dist.stages import preflight, prepare
from sani_dist.sweep.settings import load_sweep
from sani_dist.sweep.story import steps_of_points
from sani_dist.sweep.trials import Sweep, reason

from .conftest import MakeSweep

SURROGATES = {"unlikelihood": 0, "surrogate": "en_US"}


def test_trials_share_the_prepared_text_by_links(make_sweep: MakeSweep) -> None:
    path = make_sweep(space={"repair.objectives": [{}, SURROGATES]}, seeds=[0, 4])
    sweep = Sweep(path.parent / "sweep", load_sweep(path))
    sweep.create()
    before = Run.open(sweep.before)
    prepare.run(before, Metrics(before.path("metrics.jsonl")))
    sweep.share_text()
    assert [trial.name for trial in sweep.trials] == [f"{p:03d}-{seed}" for seed in (0, 4) for p in (0, 1)]
    for trial in sweep.trials:
        rows = trial.run.path("tokens", "epoch-000", "repair.arrow")
        if trial.point.values["repair.objectives"] == SURROGATES:  # makes a text of its own
            assert "prepare" in trial.run.pending()
            assert not rows.exists()
        else:
            assert trial.run.pending()[0] == "erase"
            assert rows.samefile(before.path("tokens", "epoch-000", "repair.arrow"))
            assert trial.run.key == before.key
            preflight.check_unchanged(trial.run)
        assert not trial.finished
    # What one removes the others keep.
    sweep.trials[0].run.purge()
    assert before.is_done("prepare")


def test_a_start_that_was_cut_short_is_made_good(make_sweep: MakeSweep) -> None:
    path = make_sweep()
    sweep = Sweep(path.parent / "sweep", load_sweep(path))
    sweep.create()
    assert reason(sweep.trials[0].run) is None
    sweep.trials[0].run.path("logs", "trial.log").write_text("error: of the first start\nerror: of the last\nmore\n")
    assert reason(sweep.trials[0].run) == "of the last"
    for name in ("config.yaml", "run.json"):
        (sweep.trials[1].folder / name).unlink()
    kept = Run.open(sweep.trials[0].folder).key
    again = Sweep(sweep.folder, sweep.settings)
    again.check()
    again.create()
    assert again.trials[1].run.stages == again.trials[0].run.stages
    assert again.trials[0].run.key == kept


def test_a_folder_of_other_settings_is_refused_and_one_of_more_points_goes_on(make_sweep: MakeSweep) -> None:
    path = make_sweep(budget={"points": 1})
    folder = path.parent / "sweep"
    first = Sweep(folder, load_sweep(path))
    first.create()
    more = Sweep(
        folder, load_sweep(make_sweep(budget={"points": 2, "hours": 1}, limits={"max_general_loss": 0.1}, seeds=[0, 1]))
    )
    more.check()
    more.create()
    assert len(more.trials) == 4
    other = Sweep(folder, load_sweep(make_sweep(space={"erase.layers": [3]})))
    with pytest.raises(InputError, match="is a sweep with other settings"):
        other.check()
    with pytest.raises(InputError, match="is not empty"):
        Sweep(path.parent, first.settings).check()


def test_steps_are_those_of_the_schedule_and_impossible_points_are_named(make_sweep: MakeSweep) -> None:
    found = steps_of_points(load_sweep(make_sweep(space={"repair.epochs": [1, 3]})))
    steps = {point.values["repair.epochs"]: count for point, count in found}
    assert steps[1] < steps[3] <= 3 * steps[1]
    with pytest.raises(InputError, match=r"^space: at erase\.layers=99: erase\.layers: 99, but the model has 3 layers"):
        steps_of_points(load_sweep(make_sweep(space={"erase.layers": [1, 99]})))
