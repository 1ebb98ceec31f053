"""report.json: fits its schema, holds no value, and says what the files of the run say."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sani_dist import api
from sani_dist.audit.measurement import Measurement
from sani_dist.config import Config, VerifySettings
from sani_dist.purge import purge
from sani_dist.report import write_report
from sani_dist.report.document import CURVE_POINTS
from sani_dist.report.verdict import CAVEAT
from sani_dist.run import Run

from .. import tiny
from .conftest import AFTER, BEFORE, SECRETS, MakeRun, changed

SCHEMA = json.loads(files("sani_dist.report").joinpath("schema.json").read_text())


def document(run: Run, **limits: float) -> dict[str, Any]:
    write_report(run, VerifySettings(**limits))
    found: dict[str, Any] = json.loads(run.path("report", "report.json").read_text())
    return found


def check(found: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)


# A real run


@pytest.fixture
def real(finished_run: Run, tmp_path: Path) -> Run:
    return Run.open(Path(shutil.copytree(finished_run.folder, tmp_path / "real")))


def test_a_real_run_ends_with_its_report(finished_run: Run) -> None:
    assert finished_run.stages[-1] == "report"
    assert finished_run.is_done("report")
    check(json.loads(finished_run.path("report", "report.json").read_text()))
    for name in ("index.html", "MODEL_CARD.md"):
        assert finished_run.path("report", name).stat().st_size > 2000
    card = finished_run.path("report", "MODEL_CARD.md").read_text()
    assert finished_run.path("model", "README.md").read_text() == card


def test_a_real_report_holds_no_planted_value(finished_run: Run) -> None:
    for path in [*finished_run.path("report").iterdir(), finished_run.path("model", "README.md")]:
        text = path.read_text().lower()
        assert [word for word in tiny.CANARIES if word.lower() in text] == [], path.name


def test_a_real_report_says_what_the_audits_say(finished_run: Run) -> None:
    found = json.loads(finished_run.path("report", "report.json").read_text())
    for when in ("before", "after"):
        assert (
            found["audits"][when] == json.loads(finished_run.path("audit", f"{when}.json").read_text())["measurements"]
        )
    assert len(found["training"]["curve"]) == found["training"]["steps"] == found["training"]["of"]
    assert found["run"]["code_sha256"] == json.loads(finished_run.path("run.json").read_text())["code_sha256"]
    assert found["erase"]["layers"] == 3
    assert found["erase"]["neurons"] == 41
    memory = found["erase"]["memory"]
    assert [entry["kind"] for entry in memory] == ["PERSON", "RECORD_NUMBER", None]
    assert all(entry["layers"] == [1, 2] and sum(entry["shares"]) == pytest.approx(1) for entry in memory)
    assert all(entry["tokens"] > 0 for entry in memory)


def test_a_purged_run_can_be_reported(real: Run) -> None:
    before = document(real)
    purge(real.folder)
    assert document(Run.open(real.folder)) == before


def test_resume_writes_a_lost_report_and_starts_no_rank(real: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(real.path("report"))
    assert real.pending() == ["report"]
    monkeypatch.setattr("sani_dist.orchestrate.local.start_ranks", lambda *_: pytest.fail("a rank was started"))
    api.resume(real.folder)
    assert real.pending() == []


def test_an_audit_of_a_model_alone_ends_with_its_report(
    llama_folder: Path, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    api.audit(llama_folder, make_config().corpus, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    assert run.pending() == []
    found = json.loads(run.path("report", "report.json").read_text())
    check(found)
    assert list(found["audits"]) == ["before"]
    assert (found["erase"], found["training"], found["model"]["exported"]) == (None, None, {})
    assert not run.path("model").exists()


# Made runs


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun) -> None:
    run = make_run()
    first = [path.read_bytes() for path in write_report(run)]
    assert [path.read_bytes() for path in write_report(run)] == first


@pytest.mark.parametrize("after", [AFTER, None], ids=["two audits", "one audit"])
def test_fits_the_schema(make_run: MakeRun, after: tuple[Measurement, ...] | None) -> None:
    run = make_run(after=after)
    check(document(run, max_leak100=0.05, max_greedy=0.001, max_utility_loss=0.05))
    assert run.pending() == []


@pytest.mark.parametrize("key", ["verdict", "audits", "coverage"])
def test_the_schema_refuses_a_report_without_its_parts(make_run: MakeRun, key: str) -> None:
    found = document(make_run())
    del found[key]
    with pytest.raises(jsonschema.ValidationError):
        check(found)


def test_the_schema_refuses_no_value_without_a_reason(make_run: MakeRun) -> None:
    found = document(make_run())
    found["audits"]["after"][0].update(value=None, reason=None)
    with pytest.raises(jsonschema.ValidationError):
        check(found)


def test_settings_are_shown_without_values_patterns_and_folders(make_run: MakeRun) -> None:
    run = make_run()
    assert all(secret in run.path("config.yaml").read_text() for secret in SECRETS)
    settings = document(run)["settings"]
    for path in [*run.path("report").iterdir(), run.path("model", "README.md")]:
        assert [secret for secret in SECRETS if secret in path.read_text()] == [], path.name
    assert settings["corpus"]["target"] == {"values": "(1, not shown)", "subjects": "(1, not shown)"}
    assert settings["corpus"]["source"] == "notes.jsonl"
    assert settings["erase"]["layers"] == 1


def test_a_figure_that_is_not_finite_becomes_null_with_a_reason(make_run: MakeRun) -> None:
    endless = Measurement("samples_to_leak", "sensitive", math.inf, 3e9, math.inf, 300, {})
    found = document(make_run(after=[*AFTER, endless]))
    check(found)
    (measured,) = (m for m in found["audits"]["after"] if m["metric"] == "samples_to_leak")
    assert (measured["value"], measured["low"], measured["high"]) == (None, 3e9, None)
    assert measured["reason"] == "not finite"


def test_a_repeated_step_counts_once_and_long_curves_are_averaged(make_run: MakeRun) -> None:
    run = make_run()
    curve = document(run)["training"]["curve"]
    assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]
    steps = [
        {"stage": "repair", "done": s, "total": 900, "loss": float(s), "learning_rate": 0.5} for s in range(1, 901)
    ]
    run.path("metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    curve = document(run)["training"]["curve"]
    assert len(curve) == 180 <= CURVE_POINTS
    assert curve[0] == {"step": 5, "loss": 3.0, "learning_rate": 0.5}
    assert curve[-1] == {"step": 900, "loss": 898.0, "learning_rate": 0.5}


def test_a_card_that_somebody_wrote_stays(make_run: MakeRun) -> None:
    run = make_run()
    write_report(run)
    readme = run.path("model", "README.md")
    assert "**missed**" not in readme.read_text()
    write_report(run, VerifySettings(max_leak100=0.05))
    assert "**missed**" in readme.read_text()
    readme.write_text("our own card")
    write_report(run)
    assert readme.read_text() == "our own card"


def test_coverage_counts_an_attack_only_with_a_value(make_run: MakeRun) -> None:
    tested = {line["attack"]: line["tested"] for line in document(make_run())["coverage"]}
    assert tested["Regurgitation by greedy decoding"]
    assert tested["Regurgitation by repeated sampling"]
    assert not tested["Membership inference"]  # too few controls
    assert not tested["Fine-tuning by an attacker"]


# The verdict


def said(run: Run) -> str:
    return " ".join(document(run)["verdict"]["sentences"])


def test_a_fall_is_called_a_fall_with_interval_and_control(make_run: MakeRun) -> None:
    text = said(make_run())
    assert "73.3 % before sanitising; it fell to 3.0 % (95 % interval 1.4 to 5.6 %, 300 spans)" in text
    assert "reach 0.5 % (200 spans): what is left cannot be told from guessing" in text
    assert "Highest: PERSON with 5.3 %." in text
    assert text.endswith(CAVEAT)


def test_a_change_within_the_intervals_is_no_fall(make_run: MakeRun) -> None:
    after = changed(AFTER, "leak@100", value=0.72, low=0.66, high=0.77)
    assert "the change is within what chance explains: now it is 72.0 %" in said(make_run(after=after))


def test_a_rise_is_called_a_rise(make_run: MakeRun) -> None:
    after = changed(AFTER, "leak@100", value=0.9, low=0.85, high=0.94)
    text = said(make_run(after=after))
    assert "it rose to 90.0 %" in text
    assert "what is left is more than guessing" in text


def test_without_control_the_verdict_says_so(make_run: MakeRun) -> None:
    text = said(make_run(after=[m for m in AFTER if m.population != "control"]))
    assert "No never-trained control was measured" in text
    assert "guessing." not in text


def test_kinds_that_the_control_lacks_are_named_and_not_judged_by_it(make_run: MakeRun) -> None:
    """As of towns, all of which some training saw."""
    after = [
        replace(m, n=8) if m.population == "control" and m.group == {"kind": "RECORD_NUMBER"} else m for m in AFTER
    ]
    text = said(make_run(after=after))
    assert (
        "reach 0.5 % (200 spans), next to none of them of RECORD_NUMBER: what guessing reaches there is not known."
        in text
    )
    assert "what is left" not in text


def test_an_audit_alone_claims_no_change(make_run: MakeRun) -> None:
    text = said(make_run(after=None))
    assert "the model was not changed" in text
    for word in ("fell", "before", "cost"):
        assert word not in text.replace("stands before it", "")


def test_spans_that_could_not_be_measured_give_the_reason(make_run: MakeRun) -> None:
    none = changed(BEFORE, "leak@100", value=None, low=None, high=None, n=0, reason="no spans of this group")
    assert "Extraction could not be measured: no spans of this group." in said(make_run(before=none, after=None))


@pytest.mark.parametrize("claim", ["anonymous", "anonymi", "compliant", "compliance", "safe", "guarantee"])
def test_the_report_claims_nothing_it_cannot_show(make_run: MakeRun, claim: str) -> None:
    good = [
        replace(m, value=0.0, low=0.0, high=0.001, n=5000) if m.metric.startswith(("leak", "greedy")) else m
        for m in AFTER
    ]
    run = make_run(after=good)
    write_report(run, VerifySettings(max_leak100=0.05))
    for path in run.path("report").iterdir():
        assert claim not in path.read_text().lower().replace("safetensors", "").replace("unsafe-inline", "")


def test_less_than_the_control_is_a_trace_too(make_run: MakeRun) -> None:
    control = changed(AFTER, "leak@100", "control", value=0.3, low=0.2, high=0.4)
    said = " ".join(document(make_run(after=control))["verdict"]["sentences"])
    assert "reach 30.0 % (200 spans): what is left is less than guessing, a trace too (over-unlearning)." in said


@pytest.mark.parametrize(
    ("ends", "low", "expected"),
    [
        (
            True,
            -0.01,
            "It ended after step 4 of 6, no longer above the never-trained control: 100 samples leaked 2.0 %",
        ),
        (False, 0.01, "It went to its last step and was still above the never-trained control"),
        (False, None, "There were too few documents to tell"),
    ],
)
def test_why_repair_ended(make_run: MakeRun, ends: bool, low: float | None, expected: str) -> None:
    run = make_run()
    known = dict.fromkeys(("leak", "control", "high", "auc", "auc_low", "auc_high"), None if low is None else 0.02)
    run.path("repair", "control.json").write_text(json.dumps([{"step": 4, "ends": ends, "low": low, **known}]))
    found = document(run)
    check(found)
    text = run.path("report", "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert expected in text
