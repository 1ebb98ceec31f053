"""What a sweep found, written: sweep.json (`schema.json` describes it), and from it alone front.svg and index.html; and chosen.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import yaml
from markupsafe import Markup

from sani_dist.audit.measurement import Measurement
from sani_dist.config import config_to_mapping
from sani_dist.files import write_text
from sani_dist.report import plots
from sani_dist.report.page import environment
from sani_dist.report.words import percent, signed_percent
from sani_dist.run import Run, build
from sani_dist.sweep.front import Outcome, Spread, choose, front
from sani_dist.sweep.settings import shown
from sani_dist.sweep.trials import COSTS, TEXTS, Figure, Sweep, Trial, cost, reason

SCHEMA = 1
TITLES = {"leak": "leaks above the control", "heldout": "held-out documents", "general_test": "general text"}


def write(sweep: Sweep) -> dict[str, Any]:
    """Write what is known by now; returns the document of sweep.json. `chosen.yaml` is there only if a point keeps the limits."""
    document, chosen = describe(sweep)
    files = {"sweep.json": json.dumps(document, indent=1, allow_nan=False) + "\n", "index.html": page(document)}
    if (drawn := plot(document)) is not None:
        files["front.svg"] = plots.alone(drawn)
    if chosen is not None:
        config = config_to_mapping(chosen.point.config(sweep.settings.run, chosen.seed))
        files["chosen.yaml"] = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    for name in ("sweep.json", "index.html", "front.svg", "chosen.yaml"):
        if name in files:
            build(sweep.folder / name, partial(write_text, files[name]))
        else:
            (sweep.folder / name).unlink(missing_ok=True)
    return document


def describe(sweep: Sweep) -> tuple[dict[str, Any], Trial | None]:
    """The document, and the trial of the chosen point with the first seed: not the luckiest."""
    settings, described = sweep.settings, {}
    found: dict[int, list[tuple[Trial, dict[str, Figure]]]] = {}
    for trial in sweep.trials:
        figures = sweep.figures(trial) if trial.finished else {}
        found.setdefault(trial.point.number, []).append((trial, figures))
        state = "finished" if figures else "stopped early" if trial.stopped else "unfinished"
        described[trial.name] = {
            "name": trial.name, "seed": trial.seed, "state": state, "reason": None if figures else trial.stopped or reason(trial.run),
            "figures": {name: asdict(figure) for name, figure in figures.items()}, **cost(trial.run),
        }  # fmt: skip
    outcomes = [
        Outcome(number, trials[0][0].point.values, tuple(figures for _, figures in trials if figures))
        for number, trials in sorted(found.items())
    ]
    axis = next((split for split in COSTS if any(o.values_of(split) for o in outcomes)), COSTS[0])
    best, chosen = front(outcomes, axis), choose(outcomes, settings.limits, axis)
    document = {
        "schema": SCHEMA,
        "space": json.loads(settings.model_dump_json())["space"],
        "seeds": list(settings.seeds),
        "limits": settings.limits.model_dump(),
        "cost": axis,
        "before": {"leak": asdict(sweep.leak_before), **cost(Run.open(sweep.before))},
        "points": [
            {
                "number": outcome.number,
                "values": outcome.values,
                "leak": _spread(outcome.bounds_of("leak")),
                **{split: _spread(outcome.values_of(split)) for split in TEXTS.values()},
                "keeps_limits": bool(outcome.trials) and outcome.keeps(settings.limits),
                "front": outcome in best,
                "trials": [described[trial.name] for trial, _ in found[outcome.number]],
            }
            for outcome in outcomes
        ],
        "chosen": None if chosen is None else chosen.number,
    }
    first = None if chosen is None else found[chosen.number][0][0]
    return document, first


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def plot(document: Mapping[str, Any]) -> Markup | None:
    """The points that were measured, and the front."""
    axis, shown = document["cost"], {}
    for point in document["points"]:
        if point["leak"] is not None and point[axis] is not None:
            shown[str(point["number"])] = (_measured(point[axis]), _measured(point["leak"]))
    best = [str(point["number"]) for point in document["points"] if point["front"]]
    chosen = None if document["chosen"] is None else str(document["chosen"])
    labels = (f"rise of perplexity, {TITLES[axis]}", "leak@100 above the control, upper bound")
    return plots.front(shown, best, chosen, labels) if shown else None


def _measured(spread: Mapping[str, float]) -> Measurement:
    return Measurement("", "", spread["mean"], spread["low"], spread["high"], 0, {})


def page(document: dict[str, Any]) -> str:
    """The HTML page: one file that needs nothing else."""
    points = sorted(document["points"], key=lambda p: (p["leak"] is None, p["leak"] and p["leak"]["mean"]))
    trials = [trial for point in document["points"] for trial in point["trials"]]
    context = {
        **document, "points": points, "plot": plot(document), "titles": TITLES,
        "texts": [text for text in TEXTS.values() if any(point[text] for point in points)],
        "trials": trials, "shown": shown, "share": lambda leak: percent(max(leak, 0)), "change": signed_percent, "minutes": minutes,
        "seconds": document["before"]["seconds"] + sum(trial["seconds"] for trial in trials),
    }  # fmt: skip
    return environment(autoescape=True).get_template("sweep.html.j2").render(context)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
