"""report.json: all that the report says, as data. Page and model card are made from it alone; `schema.json` describes it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sani_dist.config import VerifySettings
from sani_dist.config_file import config_to_mapping
from sani_dist.metrics import read_stage
from sani_dist.report.coverage import coverage
from sani_dist.report.evidence import Evidence
from sani_dist.report.limits import check
from sani_dist.report.redact import redacted
from sani_dist.report.regime import regime
from sani_dist.report.verdict import headline, primary_metric, sentences
from sani_dist.run import Run

SCHEMA = 1
SAMPLING = (
    "Plain sampling at temperature 1 from the whole vocabulary, given the true text before the span. Top-k or top-p sampling and lower "
    "temperatures raise the probability of likely tokens and leak more than plain sampling."
)
# Points of a training curve that a page can show; longer curves are averaged down to this.
CURVE_POINTS = 200


def describe(run: Run, evidence: Evidence, limits: VerifySettings) -> dict[str, Any]:
    """The document of one run; plain JSON types. The same run and limits give the same document."""
    outcomes = check(limits, evidence)
    audit = json.loads(run.path("audit", f"{next(iter(evidence.audits))}.json").read_text())
    state = json.loads(run.path("run.json").read_text())
    document = {
        "schema": SCHEMA,
        "model": _model(run),
        "corpus": {"sha256": audit["corpus_sha256"], "summary": dict(evidence.summary)},
        "run": {
            "started": datetime.fromtimestamp(state["started"], UTC).isoformat(timespec="seconds"),
            "stages": list(run.stages),
            "versions": state["versions"],
            "code_sha256": state.get("code_sha256"),
        },
        "verdict": {
            "headline": headline(outcomes),
            "sentences": sentences(evidence),
            "limits": [asdict(outcome) for outcome in outcomes],
        },
        "primary_metric": primary_metric(evidence.last),
        "sampling": SAMPLING,
        "audits": {when: [asdict(m) for m in measured] for when, measured in evidence.audits.items()},
        "base": [asdict(m) for m in evidence.base],
        "use_change": [asdict(m) for m in evidence.use_changes],
        "attacks": [asdict(result) for result in evidence.attacks],
        "regime": regime(evidence),
        "perplexity_rise": [asdict(m) for m in evidence.rises],
        "erase": _erase(run),
        "training": _training(run),
        "coverage": coverage(evidence.last, {result.attack for result in evidence.attacks}),
        "settings": redacted(config_to_mapping(run.config)),
    }
    plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return plain


def _model(run: Run) -> dict[str, Any]:
    source = json.loads(run.path("source.json").read_text())
    done = run.path("done", "export.json")
    exported = json.loads(done.read_text())["outputs"] if done.exists() else {}
    return {
        "name": run.config.model.source.name,
        "adapter": run.config.model.adapter is not None,
        "source_sha256": source["model_sha256"],
        "base_sha256": source.get("base_sha256"),
        "exported": {Path(name).name: sha for name, sha in sorted(exported.items())},
    }


def _erase(run: Run) -> dict[str, Any] | None:
    """How many neurons and heads of each layer were reset, of how many neurons where the model's config says so; and where memory sat."""
    path = run.path("erase", "plan.json")
    if not path.exists():
        return None
    plan = json.loads(path.read_text())
    layers, neurons = _size(run)
    counts = {
        key: [{"layer": unit["layer"], "erased": len(unit["ids"])} for unit in plan["units"] if unit["kind"] == kind]
        for key, kind in (("erased", "mlp"), ("heads", "head"))
    }
    chosen = {k: plan[k] for k in ("select", "reset", "seed")}
    return {**chosen, "layers": layers, "neurons": neurons, **counts, "memory": plan.get("memory", [])}


def _size(run: Run) -> tuple[int | None, int | None]:
    """Layers of the model and MLP neurons of each, from the config of the exported model or of the source."""
    for folder in (run.path("model"), run.config.model.path):
        path = folder / "config.json"
        if path.exists():
            config = json.loads(path.read_text())
            hidden = config.get("n_embd")
            if "num_experts" in config or "num_local_experts" in config:  # each expert has as many
                return config.get("num_hidden_layers"), None
            neurons = config.get("intermediate_size") or config.get("n_inner") or (4 * hidden if hidden else None)
            return config.get("num_hidden_layers") or config.get("n_layer"), neurons
    return None, None


def _training(run: Run) -> dict[str, Any] | None:
    """Loss and learning rate of each step of repair, averaged down to CURVE_POINTS."""
    events = [event for event in read_stage(run.path("metrics.jsonl"), "repair") if _is_step(event)]
    # A run that was stopped repeats the steps after its last checkpoint: the later line is the one that counts.
    steps = {event["done"]: event for event in events}
    trained = _trained_steps(run)
    if trained is not None:  # the checkpoint that the model was made from counts, whatever was reported beyond it
        steps = {step: event for step, event in steps.items() if step <= trained}
    if not steps:
        return None
    ordered = [steps[step] for step in sorted(steps)]
    size = -(-len(ordered) // CURVE_POINTS)
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    curve = [{"step": part[-1]["done"], **{k: _mean(part, k) for k in ("loss", "learning_rate")}} for part in parts]
    return {
        "objectives": run.config.repair.objectives.model_dump(mode="json"),
        "control": json.loads(control.read_text()) if (control := run.path("repair", "control.json")).exists() else [],
        "steps": ordered[-1]["done"] if trained is None else trained,
        "of": ordered[-1]["total"],
        "curve": curve,
    }


def _trained_steps(run: Run) -> int | None:
    """Of the checkpoint that repair ended with; None where it made none."""
    found = (re.fullmatch(r"repair/checkpoints/step-(\d+)/state.json", name) for name in run.outputs("repair"))
    return next((int(match[1]) for match in found if match), None)


def _is_step(event: dict[str, Any]) -> bool:
    return all(isinstance(event.get(key), int | float) for key in ("done", "total", "loss", "learning_rate"))


def _mean(events: Sequence[dict[str, Any]], key: str) -> float:
    return float(sum(event[key] for event in events) / len(events))
