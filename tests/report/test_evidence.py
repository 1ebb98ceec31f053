"""What `report` and `verify` say is about this model, these settings and these tables, or they say nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sani_dist import api
from sani_dist.errors import InputError
from sani_dist.purge import purge
from sani_dist.run import Run

from .conftest import MakeRun

LIMIT = {"max_leak100": 0.1}


def replace_model(run: Run) -> None:
    run.path("model", "config.json").write_text("{}")


def delete_model(run: Run) -> None:
    shutil.rmtree(run.path("model"))


def add_adapter(run: Run) -> None:
    """transformers would load it with the model."""
    run.path("model", "adapter_config.json").write_text("{}")


def edit_settings(run: Run) -> None:
    path = run.path("config.yaml")
    text = path.read_text()
    assert "epochs: 2" in text
    path.write_text(text.replace("epochs: 2", "epochs: 20"))


def edit_values(run: Run) -> None:
    path = run.path("config.yaml")
    path.write_text(path.read_text().replace("Quackenbush", "Somebody"))


def edit_summary(run: Run) -> None:
    path = run.path("corpus", "summary.json")
    summary = json.loads(path.read_text())
    summary["documents_with_spans"]["control"] = 1000
    path.write_text(json.dumps(summary))


def edit_record(run: Run) -> None:
    """The summary, and its hash in the record of the stage."""
    record = run.path("done", "prepare.json")
    document = json.loads(record.read_text())
    document["outputs"].pop("corpus/summary.json")
    record.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (replace_model, "model/config.json is not what stage export wrote"),
        (delete_model, "model/config.json is not what stage export wrote"),
        (add_adapter, "model/ has 1 files that the run did not write"),
        (edit_settings, "section `repair` is not what stage repair ran with"),
        (edit_values, "section `corpus` is not what stage prepare ran with"),
        (edit_summary, "corpus/summary.json is not what stage prepare wrote"),
        (edit_record, "what stage audit-before started from was changed"),
    ],
)
def test_refuses_to_speak_of_another_model_or_other_settings(
    make_run: MakeRun, change: Callable[[Run], None], said: str
) -> None:
    run = make_run()
    assert all(outcome.passed for outcome in api.verify(run.folder, LIMIT))
    change(run)
    for judge in (api.verify, api.report):
        with pytest.raises(InputError, match="not as the run left it") as refused:
            judge(run.folder, LIMIT)
        assert said in str(refused.value)


def test_a_card_and_a_licence_beside_the_model_change_nothing(make_run: MakeRun) -> None:
    run = make_run()
    for name in ("README.md", "LICENSE", ".gitattributes"):
        run.path("model", name).write_text("text")
    assert api.verify(run.folder, LIMIT)


@pytest.mark.parametrize("change", [replace_model, edit_settings])
def test_a_purged_run_is_tied_to_model_and_settings_as_well(make_run: MakeRun, change: Callable[[Run], None]) -> None:
    run = make_run()
    purge(run.folder)
    assert "Quackenbush" not in run.path("config.yaml").read_text()
    assert all(outcome.passed for outcome in api.verify(run.folder, LIMIT))
    change(run)
    with pytest.raises(InputError, match="not as the run left it"):
        api.verify(run.folder, LIMIT)


def test_every_limit_is_missed_where_scores_are_not_finite(make_run: MakeRun) -> None:
    run = make_run(not_finite={"heldout": 3})
    outcomes = api.verify(run.folder, {"max_greedy": 0.5, "max_leak100": 0.5, "max_utility_loss": 9.0})
    assert [outcome.passed for outcome in outcomes] == [False] * 3
    assert all("not all finite" in outcome.reason for outcome in outcomes)
    assert api.not_finite(run) == 3
    assert "The model is broken: 3 of its scores" in run.path(api.report(run.folder)).read_text()


def test_the_documents_of_a_limit_are_those_of_its_figure(make_run: MakeRun) -> None:
    """The corpus has 60 documents with spans; the figure comes from 9 of them."""
    outcome = api.verify(make_run(sensitive_documents=9).folder, LIMIT)[0]
    assert not outcome.passed
    assert "too few documents with sensitive spans to tell: 9" in outcome.reason


@pytest.mark.parametrize("name", ["run.json", "corpus/summary.json", "audit/after.json", "done/export.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"stages": 3, "outputs": 7}'])
def test_a_damaged_file_of_the_run_is_one_line(make_run: MakeRun, name: str, content: str) -> None:
    run = make_run()
    run.path(name).write_text(content)
    with pytest.raises(InputError) as refused:
        api.verify(run.folder, LIMIT)
    assert "\n" not in str(refused.value)
    assert Path(name).stem.removesuffix(".json") in str(refused.value)


def test_metrics_that_were_cut_cost_a_part_of_the_curve(make_run: MakeRun) -> None:
    run = make_run()
    path = run.path("metrics.jsonl")
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(["{", "null", '{"stage": "repair", "done": "x", "loss": null}', *lines[:3], lines[3][:-9]])
    )
    training = json.loads(run.path(api.report(run.folder).parent / "report.json").read_text())["training"]
    assert [point["step"] for point in training["curve"]] == [1, 2, 3]


def test_a_damaged_source_is_one_line(make_run: MakeRun) -> None:
    from sani_dist.stages.preflight import check_unchanged

    run = make_run()
    run.path("source.json").write_text("{")
    with pytest.raises(InputError, match=r"source.json is damaged; restore it, or start a new run"):
        check_unchanged(run)
