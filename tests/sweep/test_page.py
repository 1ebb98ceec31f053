"""The page and the plot of a sweep, from chosen figures."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

from sani_dist.report import plots
from sani_dist.sweep.page import page, plot


def spread(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.02}


def trial(name: str, state: str = "finished", reason: str | None = None, **figures: float) -> dict[str, Any]:
    found = {split: {"value": value, "bound": value + 0.01, "reason": None} for split, value in figures.items()}
    return {
        "name": name, "seed": 0, "state": state, "reason": reason, "figures": found, "seconds": 120.0, "steps": 23
    }  # fmt: skip


def point(number: int, leak: float | None, rise: float | None, found: dict[str, Any], **more: bool) -> dict[str, Any]:
    return {
        "number": number, "values": {"repair.objectives": {"unlikelihood": 1.0}, "erase.layers": number},
        "leak": None if leak is None else spread(leak), "heldout": None, "general_test": None if rise is None else spread(rise),
        "keeps_limits": True, "front": False, "trials": [found], **more,
    }  # fmt: skip


@pytest.fixture
def document() -> dict[str, Any]:
    points = [
        point(0, 0.2, -0.01, trial("000-0", leak=0.2, general_test=-0.01), front=True),
        point(1, 0.02, 0.04, trial("001-0", leak=0.02, general_test=0.04), front=True),
        point(2, 0.3, 0.09, trial("002-0", leak=0.3, general_test=0.09), keeps_limits=False),
        point(3, None, None, trial("003-0", "unfinished", "the <loss> is not finite"), keeps_limits=False),
    ]
    return {
        "schema": 1, "space": {"erase.layers": [0, 1, 2, 3]}, "seeds": [0], "limits": {"max_utility_loss": None, "max_general_loss": 0.05},
        "cost": "general_test", "before": {"leak": {"value": 0.7, "bound": 0.75, "reason": None}, "seconds": 60.0, "steps": 0},
        "points": points, "chosen": 1,
    }  # fmt: skip


def test_the_page_tells_the_choice_the_cost_and_what_failed(document: dict[str, Any]) -> None:
    jsonschema.validate(document, json.loads(resources.files("sani_dist.sweep").joinpath("schema.json").read_text()))
    text = page(document)
    assert "Chosen: point 1" in text
    assert "erase.layers=1" in text
    assert "repair.objectives={unlikelihood: 1.0}" in text
    assert "4 trials, 3 of them finished" in text
    assert "9.0 min of work, 92 optimizer steps" in text
    assert "the &lt;loss&gt;" in text
    assert text.index('<th scope="row">1<') < text.index('<th scope="row">0<') < text.index('<th scope="row">2<')
    assert "beyond the limits" in text


def test_without_a_choice_the_page_says_so(document: dict[str, Any]) -> None:
    text = page({**document, "chosen": None})
    assert "No point keeps the limits" in text
    assert "chosen.yaml" in text


def test_the_plot_stands_alone_and_shows_what_was_measured(document: dict[str, Any]) -> None:
    drawn = plot(document)
    assert drawn is not None
    root = ElementTree.fromstring(plots.alone(drawn))
    name = "{http://www.w3.org/2000/svg}"
    marks = [mark.get("class") for mark in root.iter(f"{name}circle")]
    assert marks.count("mark after") == 2
    assert marks.count("mark before") == 1
    assert marks.count("chosen") == 1
    assert "Chosen: 1." in root.findtext(f"{name}desc", "")
    assert plot({**document, "points": document["points"][3:]}) is None
