"""Which trials end early: those that another one beat in leak and in cost, with no more training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from sani_dist.sweep.early import EarlyStopping, beaten_by
from sani_dist.sweep.trials import STOPPED, Look

GOOD, LEAKY, DEAR = Look(0.0, 0.1, 3.0), Look(0.4, 0.6, 3.1), Look(0.0, 0.1, 3.5)


@pytest.mark.parametrize(
    ("own", "other", "beaten"),
    [
        ([LEAKY], [GOOD], True),
        ([LEAKY, LEAKY], [GOOD], True),  # with less training
        ([LEAKY], [LEAKY, GOOD], False),  # with more
        ([LEAKY], [DEAR], False),  # the other end of the front
        ([DEAR], [GOOD], False),  # no less leak that is sure
        ([GOOD], [LEAKY], False),
        ([Look(None, None, 9.0)], [GOOD], False),  # too little to tell
        ([LEAKY], [Look(None, None, 1.0)], False),
        ([LEAKY], [], False),
    ],
)
def test_beaten_is_less_leak_and_no_more_cost_with_no_more_training(
    own: list[Look], other: list[Look], beaten: bool
) -> None:
    assert (beaten_by(own, {"other": other}) == "other") is beaten


def test_the_folder_of_a_trial_that_was_ended_says_so(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("000-0", "001-0")]
    for folder, low in zip(folders, (0.0, 0.5), strict=True):
        (folder / "repair").mkdir(parents=True)
        entry = {"low": low, "high": low + 0.1, "losses": {"general_test": 3.0, "heldout": 1.0}}
        (folder / "repair" / "looks.json").write_text(json.dumps([entry, entry]))
    stopping = EarlyStopping(folders)

    def decided(folder: Path, epochs: int, rule: EarlyStopping = stopping) -> str:
        trial = SimpleNamespace(config={"folder": str(folder)})
        return rule.on_trial_result(None, trial, {"epochs": epochs, "all_epochs": 2})

    assert decided(folders[1], 0) == decided(folders[0], 1) == TrialScheduler.CONTINUE
    assert decided(folders[1], 2) == TrialScheduler.CONTINUE  # only its audit is left
    assert decided(folders[1], 1, EarlyStopping([])) == TrialScheduler.CONTINUE
    assert not (folders[1] / STOPPED).exists()
    assert decided(folders[1], 1) == TrialScheduler.STOP
    assert (folders[1] / STOPPED).read_text() == "after epoch 1: trial 000-0 leaked less and cost less by then"
