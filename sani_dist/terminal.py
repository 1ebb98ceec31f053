"""What a person sees: progress bars while a run goes, and tables of what it measured."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sani_dist.run import Run

NAMES = {
    "prepare": "Find sensitive spans, tokenise",
    "load": "Load the model's shards",
    "audit-before": "Audit before",
    "erase": "Choose neurons to erase",
    "repair": "Train",
    "audit-after": "Audit after",
    "export": "Export",
}


class ProgressView:
    """One bar per stage, fed with the events of metrics.jsonl."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<31}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f} {task.fields[unit]:<9}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressView:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(
                NAMES.get(stage, stage), total=event["total"], unit=event["unit"], numbers=""
            )
        numbers = ""
        if "loss" in event:
            numbers = f"loss {event['loss']:.3f}  {event['tokens_per_second']:.0f} tokens/s"
        self._progress.update(self._tasks[stage], completed=event["done"], total=event["total"], numbers=numbers)


def corpus_table(run: Run) -> Table:
    """Counts of what was found, by kind; recall against labels where the corpus has them. Never values."""
    summary = json.loads(run.path("corpus", "summary.json").read_text())
    kinds, recall = summary["kinds"]["repair"], (summary.get("score") or {}).get("recall", {})
    table = Table(title="Sensitive spans in the text to be repaired", title_justify="left")
    for name in ("kind", "spans", *(["labelled", "recall"] if recall else [])):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in sorted({*kinds, *(k for k in recall if k != "all")}):
        table.add_row(kind, str(kinds.get(kind, 0)), *_recall_cells(recall, kind))
    total = sum(kinds.values())
    table.add_row("[bold]all", f"[bold]{total}", *_recall_cells(recall, "all"))
    share = summary["tokens"]["repair"]["sensitive_share"]
    table.caption = f"{share:.1%} of the tokens are sensitive and stay out of the loss"
    return table


def _recall_cells(recall: dict[str, Any], kind: str) -> list[str]:
    if not recall:
        return []
    entry = recall.get(kind)
    return ["-", "-"] if entry is None else [str(entry["labelled"]), f"{entry['recall']:.3f}"]


EXPLAINED = {
    "greedy": "spans reproduced by greedy decoding",
    "leak@1": "leaked by 1 sample",
    "leak@10": "leaked by 10 samples",
    "leak@100": "leaked by 100 samples",
    "leak@1000": "leaked by 1000 samples",
    "perplexity": "perplexity",
}
SPLITS = {"repair": "repaired documents", "heldout": "held-out documents", "general_test": "general text"}


def audit_table(audits: dict[str, list[dict[str, Any]]], title: str = "Audit") -> Table:
    """Measurements side by side; `audits`: column title -> measurements of an audit file. Control from the last column."""
    table = Table(title=title, title_justify="left")
    table.add_column("measured")
    for name in audits:
        table.add_column(name, justify="right")
    table.add_column("never trained on", justify="right")
    whole = {name: [m for m in found if not m["group"]] for name, found in audits.items()}
    last = list(whole.values())[-1]
    for entry in last:
        if entry["population"] == "control":
            continue
        cells = [_cell(_find(found, entry["metric"], entry["population"])) for found in whole.values()]
        is_extraction = entry["population"] == "sensitive"
        control = _cell(_find(last, entry["metric"], "control")) if is_extraction else ""
        label = EXPLAINED.get(entry["metric"], entry["metric"])
        table.add_row(
            label if is_extraction else f"{label}, {SPLITS.get(entry['population'], entry['population'])}",
            *cells,
            control,
        )
    table.caption = (
        "[ ]: 95 % interval. Extraction: share of sensitive spans, given the true text before them (temperature 1)."
    )
    return table


def kinds_table(audits: dict[str, list[dict[str, Any]]], metric: str = "leak@100") -> Table:
    """One metric by kind of identifier."""
    table = Table(title=f"{metric} by kind", title_justify="left")
    for name in ("kind", "spans", *audits, "never trained on"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    last = list(audits.values())[-1]
    for entry in last:
        kind = entry["group"].get("kind")
        if kind is None or entry["metric"] != metric or entry["population"] != "sensitive":
            continue
        cells = [_cell(_find(found, metric, "sensitive", kind), interval=False) for found in audits.values()]
        table.add_row(kind, str(entry["n"]), *cells, _cell(_find(last, metric, "control", kind), interval=False))
    return table


def _find(found: list[dict[str, Any]], metric: str, population: str, kind: str | None = None) -> dict[str, Any] | None:
    group = {} if kind is None else {"kind": kind}
    return next((m for m in found if (m["metric"], m["population"], m["group"]) == (metric, population, group)), None)


def _cell(entry: dict[str, Any] | None, interval: bool = True) -> str:
    if entry is None:
        return "-"
    if entry["value"] is None:
        return f"- ({entry['reason']})"
    digits = 1 if entry["metric"] == "perplexity" else 3
    text = f"{entry['value']:.{digits}f}"
    return f"{text} [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]".replace("[", "\\[") if interval else text
