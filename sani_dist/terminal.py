"""What a person sees: progress while a run goes, and tables of what it measured. Made to fit 80 columns, as logs have."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sani_dist.attack.result import ATTACKED, GOLD, PREFERENCE, Result
from sani_dist.audit.measurement import Measurement
from sani_dist.messages import plain
from sani_dist.report.catalogue import POPULATIONS
from sani_dist.run import Run, read_json

NAMES = {
    "prepare": "Find sensitive spans",
    "load": "Load the model's shards",
    "audit-before": "Audit before",
    "erase": "Choose neurons to erase",
    "repair": "Train",
    "audit-after": "Audit after",
    "export": "Export",
    "attack": "Attack",
}
# With fewer columns the bar itself would vanish beside the speed.
WIDE = 100


class ProgressView:
    """Fed with the events of metrics.jsonl: one bar per stage on a terminal, one line per finished stage in a file or pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<23}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("left{task.fields[numbers]}"),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}

    def __enter__(self) -> ProgressView:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event["stage"]
        name = NAMES.get(stage, stage)
        loss = f", loss {event['loss']:.3f}" if "loss" in event else ""
        started = self._started.setdefault(stage, time.monotonic())
        if not self._console.is_terminal:
            if event["done"] == event["total"]:
                done = f"{name}: {event['total']} {event['unit']}, {time.monotonic() - started:.0f} s{loss}"
                self._console.print(done, highlight=False, soft_wrap=True)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(name, total=event["total"], unit=event["unit"], numbers="")
        if loss and self._console.width >= WIDE:
            loss += f", {event['tokens_per_second']:.0f} tokens/s"
        self._progress.update(self._tasks[stage], completed=event["done"], total=event["total"], numbers=loss)


def corpus_table(run: Run) -> Group:
    """Counts of what was found, by kind; recall against labels where the corpus has them; what of folders was read. Never values."""
    summary = read_json(run.path("corpus", "summary.json"))
    kinds, recall = summary["kinds"]["repair"], (summary.get("score") or {}).get("recall", {})
    table = _table("Sensitive spans in the text to be repaired")
    for name in ("kind", "spans", *(["labelled", "recall"] if recall else [])):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in sorted({*kinds, *(k for k in recall if k != "all")}):
        table.add_row(plain(kind), str(kinds.get(kind, 0)), *_recall_cells(recall, kind))
    total = sum(kinds.values())
    table.add_row("[bold]all", f"[bold]{total}", *_recall_cells(recall, "all"))
    share = summary["tokens"]["repair"]["sensitive_share"]
    table.caption = f"{share:.1%} of the tokens, left out of the loss"
    folders = (f"corpus.{name}: {line}" for name, line in summary.get("folders", {}).items())
    return Group(table, *(Text(line, overflow="fold") for line in folders))


def _recall_cells(recall: dict[str, Any], kind: str) -> list[str]:
    if not recall:
        return []
    entry = recall.get(kind)
    return ["-", "-"] if entry is None else [str(entry["labelled"]), f"{entry['recall']:.3f}"]


def audit_table(audits: dict[str, list[dict[str, Any]]], title: str = "Audit") -> Table:
    """Extraction and perplexity side by side; `audits`: column title -> measurements of an audit file. Control from the last column.

    The rest (exposure, membership, accuracy) needs the words that the report has for it.
    """
    table = _table(title)
    table.add_column("measured", no_wrap=True)
    for name in (*audits, "never trained on"):
        table.add_column(plain(name), justify="right", overflow="fold")
    whole = {name: [m for m in found if not m["group"]] for name, found in audits.items()}
    last = list(whole.values())[-1]
    for heading, metrics in (("spans given away by", r"greedy|leak@\d+"), ("perplexity of", "perplexity")):
        entries = [m for m in last if m["population"] != "control" and re.fullmatch(metrics, m["metric"])]
        if entries:
            table.add_row(heading, *[""] * (len(whole) + 1))
        for entry in entries:
            cells = [_cell(_find(found, entry["metric"], entry["population"])) for found in whole.values()]
            of_spans = entry["population"] == "sensitive"
            control = _cell(_find(last, entry["metric"], "control")) if of_spans else ""
            label = _way(entry["metric"]) if of_spans else POPULATIONS[entry["population"]]
            table.add_row(f"  {label}", *cells, control)
    for metric, label in (
        ("copied_appended", "copied from the prompt"),
        ("value_logprob", "log-probability of new values"),
    ):
        if _find(last, metric, "control") is not None:
            table.add_row(label, *(_cell(_find(found, metric, "control")) for found in whole.values()), "")
    table.caption = (
        "Given the true text before a span; samples at temperature 1. [ ]: 95 % interval.\n"
        "What else was measured: see the report or the JSON."
    )
    return table


def attack_table(results: Sequence[Result]) -> Table:
    """What each attack got out, beside its control and a gold model; of those that look at every layer the layer that gives away most."""
    table = _table("Attacks with the weights")
    gold = {(r.attack, r.variant): r for r in results if r.model == GOLD}
    for name in ("attack", "attacked", "never trained on", *(["gold model"] if gold else [])):
        table.add_column(name, justify="left" if name == "attack" else "right", overflow="fold")
    for heading, metric in (("leaked by 100 samples", "leak@100"), ("true value preferred", PREFERENCE)):
        lines = []
        for result in results:
            worst = _worst(result, metric, "sensitive")
            if result.model != ATTACKED or worst is None:
                continue
            others = [_worst(result, metric, "control")]
            if gold:
                twin = gold.get((result.attack, result.variant))
                others.append(None if twin is None else _worst(twin, metric, "sensitive"))
            layer = f" (layer {worst.group['layer']})" if worst.group else ""
            cells = [_cell(None if m is None else asdict(m)) for m in (worst, *others)]
            lines.append([plain(f"  {result.attack}: {result.variant}{layer}"), *cells])
        if lines:
            table.add_row(heading, *[""] * len(lines[0][1:]))
            for line in lines:
                table.add_row(*line)
    table.caption = (
        "nothing: the same spans, nothing done. True value preferred to another of its kind: guessing is .500.\n"
        "Of lens and probe each column has its highest layer, which lifts guessing: compare with the columns beside it."
    )
    return table


def _worst(result: Result, metric: str, population: str) -> Measurement | None:
    """Of all layers. Of a grid of points the worst stands for itself: there it is that the control is asked too."""
    named = [m for m in result.measurements if (m.metric, m.population) == (metric, population) and m.value is not None]
    found = [m for m in named if "point" not in m.group]
    return max(found, key=lambda m: m.value or 0.0, default=None)


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )


def _way(metric: str) -> str:
    return (
        "greedy decoding"
        if metric == "greedy"
        else f"{metric.removeprefix('leak@')} sample{'s' * (metric != 'leak@1')}"
    )


def kinds_table(audits: dict[str, list[dict[str, Any]]], metric: str = "leak@100") -> Table:
    """One metric by kind of identifier."""
    table = _table(f"{metric} by kind")
    for name in ("kind", "spans", *audits, "never trained on"):
        table.add_column(plain(name), justify="left" if name == "kind" else "right", overflow="fold")
    last = list(audits.values())[-1]
    for entry in last:
        kind = entry["group"].get("kind")
        if kind is None or entry["metric"] != metric or entry["population"] != "sensitive":
            continue
        cells = [_cell(_find(found, metric, "sensitive", kind), interval=False) for found in audits.values()]
        table.add_row(plain(kind), str(entry["n"]), *cells, _cell(_find(last, metric, "control", kind), interval=False))
    return table


def _find(found: list[dict[str, Any]], metric: str, population: str, kind: str | None = None) -> dict[str, Any] | None:
    group = {} if kind is None else {"kind": kind}
    return next((m for m in found if (m["metric"], m["population"], m["group"]) == (metric, population, group)), None)


def _cell(entry: dict[str, Any] | None, interval: bool = True) -> str:
    if entry is None:
        return "-"
    if entry["value"] is None:
        return f"- ({plain(entry['reason'])})" if interval else "-"
    write = _perplexity if entry["metric"] == "perplexity" else _share
    text = write(entry["value"])
    return f"{text} \\[{write(entry['low'])}, {write(entry['high'])}]" if interval else text


def _share(value: float) -> str:
    """Four characters: .472, 1.00."""
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0") else f"{value:.2f}"


def _perplexity(value: float) -> str:
    """At most four characters below a million: 1.04, 23.8, 712, 9.9k, 88k."""
    for limit, digits in ((10, 2), (100, 1), (1000, 0)):
        if round(value, digits) < limit:
            return f"{value:.{digits}f}"
    return f"{value / 1000:.{1 if value < 9950 else 0}f}k"
