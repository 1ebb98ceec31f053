"""What a person sees, in the 80 columns of a log."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from sani_dist import terminal


def measurement(metric: str, population: str, value: float | None, **group: str) -> dict[str, Any]:
    spread = None if value is None else 0.03 * value
    low, high = (None, None) if value is None or spread is None else (value - spread, min(1.0, value + spread))
    if metric == "perplexity" and value is not None and spread is not None:
        high = value + spread
    reason = "no spans of this group" if value is None else None
    return {
        "metric": metric, "population": population, "value": value, "low": low, "high": high, "n": 7, "group": group,
        "reason": reason,
    }  # fmt: skip


def audit(share: float, perplexity: float, control: float | None = 0.0123) -> list[dict[str, Any]]:
    found = []
    for metric in ("greedy", "leak@1", "leak@10", "leak@100", "leak@1000"):
        found += [measurement(metric, "sensitive", share), measurement(metric, "control", control)]
    found += [
        measurement("leak@100", "sensitive", share, kind="RECORD_NUMBER"),
        measurement("leak@100", "control", control, kind="RECORD_NUMBER"),
    ]
    found += [measurement("perplexity", split, perplexity) for split in ("repair", "heldout", "general_test")]
    # What the report alone shows.
    found += [
        measurement("samples_to_leak", "sensitive", 7.4e21), measurement("exposure", "sensitive", 5.04),
        measurement("mia_loss_auc", "repair", 0.9), measurement("next_token_accuracy", "general_test", 0.4),
    ]  # fmt: skip
    return found


def printed(thing: Any, width: int = 80) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(thing)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("share", "perplexity"), [(0.4721, 1.234), (1.0, 23.84), (0.99996, 123.4), (0.0, 9876.5), (1e-9, 99.96)]
)
def test_each_measurement_is_one_line_of_80_columns(share: float, perplexity: float) -> None:
    lines = printed(terminal.audit_table({"before": audit(share, perplexity), "after": audit(share, perplexity)}))
    assert max(map(len, lines)) <= 80
    for label in (
        *("greedy decoding", "1 sample", "10 samples", "1000 samples"),
        *("repaired documents", "held-out documents", "general text"),
    ):
        (line,) = [line for line in lines if line.startswith(f"  {label} ")]
        assert line.count("[") == line.count("]") == (3 if "sample" in label or "greedy" in label else 2)


def test_the_numbers_are_those_of_the_audit() -> None:
    table = terminal.audit_table({"before": audit(0.4721, 1.234), "after": audit(0.0, 23.84, control=None)})
    lines = printed(table, width=120)
    (greedy,) = [line.split() for line in lines if "greedy" in line]
    assert greedy[2:] == [
        ".472",
        "[.458,",
        ".486]",
        ".000",
        "[.000,",
        ".000]",
        "-",
        "(no",
        "spans",
        "of",
        "this",
        "group)",
    ]
    (general,) = [line.split() for line in lines if "general" in line]
    assert general[2:] == ["1.23", "[1.20,", "1.27]", "23.8", "[23.1,", "24.6]"]
    (kind,) = [line.split() for line in printed(terminal.kinds_table({"before": audit(0.4721, 1)})) if "RECORD" in line]
    assert kind == ["RECORD_NUMBER", "7", ".472", ".012"]


def test_long_names_of_runs_are_folded_and_not_cut() -> None:
    names = ("runs/2026-01-01-hospital-paper, after", "runs/2026-01-02-hospital-strong, after")
    lines = printed(terminal.audit_table({name: audit(0.4, 30) for name in names}, "Two runs"))
    assert max(map(len, lines)) <= 80
    head = lines[2 : next(i for i, line in enumerate(lines) if line.startswith("─"))]
    letters = "".join(head).replace(" ", "")
    assert all(letters.count(c) >= sum(name.count(c) for name in names) for c in "2h1-")
    assert "…" not in letters


EVENTS: list[dict[str, Any]] = [
    {"stage": "prepare", "done": 5, "total": 6, "unit": "documents"},
    {"stage": "prepare", "done": 9, "total": 9, "unit": "documents"},
    {"stage": "repair", "done": 1, "total": 2, "unit": "steps", "loss": 3.0, "tokens_per_second": 1234.0},
    {"stage": "repair", "done": 2, "total": 2, "unit": "steps", "loss": 2.5, "tokens_per_second": 1234.0},
]


def shown(**options: Any) -> str:
    stream = io.StringIO()
    with terminal.ProgressView(Console(file=stream, **options)) as view:
        for event in EVENTS:
            view(event)
    return stream.getvalue()


def test_a_log_gets_one_line_per_finished_stage() -> None:
    lines = shown(width=80).splitlines()
    assert lines == ["Find sensitive spans: 9 documents, 0 s", "Train: 2 steps, 0 s, loss 2.500"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_gets_bars_that_fit_it(width: int) -> None:
    text = shown(width=width, force_terminal=True, color_system=None, legacy_windows=False)
    assert "Train" in text
    assert "2/2 steps" in text
    assert "loss 2.500" in text
    assert ("1234 tokens/s" in text) is (width > 100)
    assert "…" not in text
