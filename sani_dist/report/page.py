"""report.json -> index.html and MODEL_CARD.md. Nothing but the document goes in, so whoever has it can make the page again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sani_dist.audit.measurement import Measurement
from sani_dist.report import catalogue, plots
from sani_dist.report.evidence import find
from sani_dist.report.use import AGAINST
from sani_dist.report.words import NOT_THERE, listed, number, percent, signed_percent, span

ROLES = ("before", "after", "control")
# Columns of changes, by what they are against.
CHANGES = {"before": "change", "base": "change_base"}
# What kinds of identifiers are compared with, where memory sat.
ORDINARY = "ordinary text"


@dataclass(frozen=True)
class Cell:
    """A figure and its interval as text; `reason`: why there is none, or what to bear in mind with it."""

    value: str
    interval: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table. `cells` has "before" or "now", "after", "control", "change", as far as they exist."""

    head: str
    explanation: str
    n: str
    cells: dict[str, Cell]
    strip: Markup | None


class _Report:
    """The document with its measurements as objects, and the tables the templates ask for."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.audits = {when: [Measurement(**m) for m in found] for when, found in document["audits"].items()}
        self.rises = {m["population"]: Measurement(**m) for m in document["perplexity_rise"]}
        self.base = [Measurement(**m) for m in document["base"]]
        self.use_changes = [Measurement(**m) for m in document["use_change"]]
        self.last = list(self.audits.values())[-1]
        self.primary: str = document["primary_metric"]

    @property
    def whens(self) -> list[str]:
        return list(self.audits)

    @property
    def audit_only(self) -> bool:
        """The model was audited and not changed."""
        return "after" not in self.audits

    @property
    def compared(self) -> bool:
        """There is an audit before and one after."""
        return len(self.audits) == 2

    def primary_title(self) -> str:
        title = catalogue.title(self.primary)
        return title[0].lower() + title[1:]

    def kinds(self) -> list[str]:
        """Kinds found or labelled in the text to be repaired, and "all"."""
        summary = self.document["corpus"]["summary"]
        labelled = (summary.get("score") or {}).get("recall", {})
        return [*sorted({*summary["kinds"].get("repair", {}), *labelled} - {"all"}), "all"]

    def section(self, name: str) -> list[Row]:
        """Measurements of a section of the catalogue, the control beside them. Extraction has tables of its own for groups."""
        return [
            self._row(m, _head(metric, m), "" if m.group else metric.explained())
            for m in self._distinct()
            if (metric := catalogue.known(m.metric)) is not None
            and metric.section == name
            and m.population != "control"
            and not (m.group and name == "extraction")
        ]

    def groups(self) -> Iterator[tuple[str, str, list[Row]]]:
        """(title, head of the first column, rows) of the primary metric, for each key that groups have."""
        for key, (title, head) in catalogue.GROUPS.items():
            rows = [
                self._row(m, m.group[key], "")
                for m in self._distinct()
                if m.metric == self.primary and m.population == "sensitive" and set(m.group) == {key}
            ]
            if rows:
                yield title, head, rows

    def usefulness(self) -> list[Row]:
        rows, explained = [], set()
        for m in self._distinct():
            metric = catalogue.known(m.metric)
            if metric is not None and metric.section == "usefulness" and not m.group:
                where = catalogue.POPULATIONS.get(m.population, m.population)
                row = self._row(m, f"{metric.title}, {where}", metric.explained() if m.metric not in explained else "")
                explained.add(m.metric)
                rise = self.rises.get(m.population) if m.metric == "perplexity" else None
                change = {"change": _cell(rise, signed_percent)} if rise is not None else {}
                rows.append(Row(row.head, row.explanation, row.n, {**row.cells, **change}, row.strip))
        return rows

    @property
    def use_columns(self) -> list[str]:
        against = {m.group[AGAINST] for m in self.use_changes}
        changes = [column for name, column in CHANGES.items() if name in against]
        return [*(["base"] if self.base else []), *self.whens, *changes]

    def use(self, by_kind: bool = False) -> list[Row]:
        """Copying and plausibility, beside the base model: over all, or by kind."""
        rows = []
        for m in self._distinct():
            metric = catalogue.known(m.metric)
            if metric is None or metric.section != "use" or bool(m.group) != by_kind:
                continue
            row = self._row(m, _head(metric, m), "" if by_kind else metric.explained())
            base = find(self.base, m.metric, m.population, m.group)
            cells = {"base": _cell(base, metric.write)} if self.base else {}
            changes = {
                CHANGES[change.group[AGAINST]]: _cell(change, signed_percent)
                for change in self.use_changes
                if change.metric == m.metric and not by_kind
            }
            rows.append(replace(row, cells={**cells, **row.cells, **changes}, strip=None))
        return rows

    def everything(self) -> list[Row]:
        """Each measurement of any audit, one line each."""
        rows = []
        for m in self._distinct():
            group = ", ".join(f"{key}: {value}" for key, value in m.group.items()) or "all"
            found = {when: find(audit, m.metric, m.population, m.group) for when, audit in self.audits.items()}
            cells = {when: _cell(found[when], _writer(m.metric)) for when in found}
            rows.append(Row(m.metric, f"{m.population} \N{MIDDLE DOT} {group}", f"{m.n:,}", cells, None))
        return rows

    def tradeoff(self) -> Markup | None:
        """Leak against perplexity, where both audits have both. General text if there is any: it is what is easily lost."""
        if not self.compared:
            return None
        control = find(self.last, self.primary, "control")
        metric = catalogue.known(self.primary)
        for split in ("general_test", "heldout"):
            cost = {when: find(found, "perplexity", split) for when, found in self.audits.items()}
            leak = {when: find(found, self.primary, "sensitive") for when, found in self.audits.items()}
            known_cost = {when: m for when, m in cost.items() if m is not None and m.value is not None}
            known_leak = {when: m for when, m in leak.items() if m is not None and m.value is not None}
            if len(known_cost) == len(known_leak) == 2 and metric is not None:
                what = "spans reproduced" + (f" by {metric.title.lower()}")
                return plots.tradeoff(
                    known_cost, known_leak, control, (f"perplexity on {catalogue.POPULATIONS[split]}", what)
                )
        return None

    def curves(self) -> list[Markup]:
        training = self.document["training"]
        if training is None or len(training["curve"]) < 2:
            return []
        steps = [point["step"] for point in training["curve"]]
        return [
            plots.curve(steps, [point[key] for point in training["curve"]], key.replace("_", "-"), ("step", label))
            for key, label in (("loss", "loss per learnable token"), ("learning_rate", "learning rate"))
        ]

    def objectives(self) -> str:
        """What repair learnt, in a sentence."""
        chosen = self.document["training"]["objectives"]
        if chosen["plain"]:
            return "All tokens counted, sensitive ones too."
        said = ["left out of the loss"]
        if chosen["aim"]:
            said = [
                "drawn, where they stand first, to a reference that does not know them",
                "learnt where they stand again",
            ]
        if chosen["unlikelihood"]:
            floor = f" down to a probability of {percent(chosen['floor'])}" if chosen["floor"] else ""
            said.append(f"pushed down by unlikelihood{floor}")
        if chosen["surrogate"] is not None:
            said.append(
                "in every other epoch replaced by surrogates"
                if chosen["unlikelihood"] or chosen["aim"]
                else "replaced by surrogates"
            )
        kept = " Ordinary tokens were held to what the model predicted before erasing." if chosen["kl"] else ""
        return f"Sensitive tokens were {listed(said)}.{kept}"

    def ending(self) -> str:
        """Why repair ended where it did; nothing where it simply went to its last step."""
        training = self.document["training"]
        if not training["control"]:
            return ""
        last = training["control"][-1]
        if last["low"] is None:
            return "There were too few documents to tell sensitive spans from the control, so it went to its last step."
        compared = (
            f"100 samples leaked {percent(last['leak'])} of the sensitive spans and {percent(last['control'])} of the control, "
            f"and membership of spans stood at {percent(last['auc'])}"
        )
        if last["ends"]:
            return f"It ended after step {last['step']} of {training['of']}, no longer above the never-trained control: {compared}."
        return f"It went to its last step and was still above the never-trained control: {compared}."

    def begins_at_base(self) -> bool:
        """Whether every parameter was reset to the base model's."""
        erase = self.document["settings"]["erase"]
        return self.document["erase"] is not None and erase["layers"] > 0 and erase["select"] == "everything"

    def layers(self) -> Markup | None:
        erase = self.document["erase"]
        if erase is None or not erase["erased"]:
            return None
        erased = {entry["layer"]: entry["erased"] for entry in erase["erased"]}
        return plots.layers(erased, erase["layers"] or max(erased) + 1, erase["neurons"])

    def memory(self) -> Iterator[tuple[str, Markup, list[str], list[list[str]]]]:
        """(units, figure, head and lines of its table) of where memory sat, for each kind of unit that was chosen from."""
        erase = self.document["erase"]
        for units, title in (("mlp", "neurons"), ("head", "heads")):
            found = [entry for entry in erase["memory"] if entry["units"] == units] if erase else []
            if len(found) < 2 or len(found[0]["layers"]) < 2:  # nothing to compare
                continue
            named = {ORDINARY if entry["kind"] is None else entry["kind"]: entry for entry in found}
            layers = found[0]["layers"]
            drawn = plots.heat_map(layers, {name: entry["shares"] for name, entry in named.items()}, f"memory-{units}")
            head = ["tokens of", "tokens", *(f"layer {layer}" for layer in layers)]
            lines = [[name, f"{entry['tokens']:,}", *map(percent, entry["shares"])] for name, entry in named.items()]
            yield title, drawn, head, lines

    def attacks(self) -> Iterator[tuple[str, str, list[Row]]]:
        """(title, explanation, rows) of each attack that is judged by what comes out; the lens has a row for each layer, relearning one for
        each point that was tried."""
        for name, (title, explanation) in catalogue.ATTACKS.items():
            found = {
                (r["variant"], _place(m["group"]), r["model"], m["population"]): Measurement(**m)
                for r in self.document["attacks"]
                for m in r["measurements"]
                if r["attack"] == name and m["metric"] == catalogue.JUDGED_BY.get(name, self.primary)
            }
            rows = [self._attack_row(found, *key[:2]) for key in found if key[2:] == ("attacked", "sensitive")]
            if rows:
                yield title, explanation, rows

    def _attack_row(
        self, found: dict[tuple[str, str | None, str, str], Measurement], variant: str, place: str | None
    ) -> Row:
        """The attacked model, its control, and the gold model."""
        columns = {
            "attacked": ("attacked", "sensitive"),
            "control": ("attacked", "control"),
            "gold": ("gold", "sensitive"),
        }
        measured = {role: found.get((variant, place, *where)) for role, where in columns.items()}
        attacked = found[variant, place, "attacked", "sensitive"]
        cells = {role: _cell(m, _writer(attacked.metric)) for role, m in measured.items()}
        head = catalogue.VARIANTS.get(variant, variant)
        if place is not None:
            head = place if variant == "each layer" else f"{place}, {head}"
        drawn = plots.strip({"after": measured["attacked"], "control": measured["control"]})
        return Row(head, "", f"{attacked.n:,}", cells, drawn)

    def drift(self) -> tuple[list[str], list[list[str]]] | None:
        """Head and lines of a table by layer, of the model that was attacked."""
        columns: dict[tuple[str, str], dict[str, float]] = {}
        for result in self.document["attacks"]:
            if (result["attack"], result["model"]) == ("drift", "attacked"):
                for m in result["measurements"]:
                    if m["group"]:
                        columns.setdefault((m["metric"], m["population"]), {})[m["group"]["layer"]] = m["value"]
        if not columns:
            return None
        named = {
            "cka": "CKA",
            "pca_similarity": "first direction, cosine",
            "pca_shift": "shift along it, in deviations",
            "pca_distance": "shift along the first two",
            "fisher_ratio": "Fisher information, after / before",
        }
        head = ["layer", *(f"{named[metric]}, {catalogue.POPULATIONS[split]}" for metric, split in columns)]
        layers = next(iter(columns.values()))
        return head, [[layer, *(number(values[layer]) for values in columns.values())] for layer in layers]

    def headline_cells(self) -> list[tuple[str, dict[str, Cell]]]:
        """The figures at the top: the primary metric, greedy decoding, and what was lost."""
        figures = []
        for metric in dict.fromkeys((self.primary, "greedy")):
            measured = find(self.last, metric, "sensitive")
            if measured is not None:
                known = catalogue.known(metric)
                title = f"Reproduced by {known.title[0].lower() + known.title[1:] if known else metric}"
                figures.append((title, self._row(measured, "", "").cells))
        copying = find(self.use_changes, "copied_appended", "control", {AGAINST: "before"})
        if copying is not None:
            figures.append(("Change of copying from the prompt", {"change": _cell(copying, signed_percent)}))
        for split in ("heldout", "general_test"):
            if split in self.rises:
                where = catalogue.POPULATIONS[split]
                figures.append((f"Change of perplexity, {where}", {"change": _cell(self.rises[split], signed_percent)}))
        return figures

    def _distinct(self) -> Iterator[Measurement]:
        """Every metric, population and group once, in the order of the last audit, then what only an earlier one has."""
        seen = set()
        for audit in reversed(self.audits.values()):
            for m in audit:
                name = (m.metric, m.population, tuple(m.group.items()))
                if name not in seen:
                    seen.add(name)
                    yield m

    def _row(self, m: Measurement, head: str, explanation: str) -> Row:
        """`m` before and after, and its control from the last audit."""
        found = {when: find(audit, m.metric, m.population, m.group) for when, audit in self.audits.items()}
        if m.population == "sensitive":
            found["control"] = find(self.last, m.metric, "control", m.group)
        metric = catalogue.known(m.metric)
        cells = {role: _cell(measured, _writer(m.metric)) for role, measured in found.items()}
        drawn = plots.strip(found) if metric is not None and metric.share else None
        remarks = {
            measured.reason for measured in found.values() if measured is not None and measured.value is not None
        }
        if len(found) > 1 and len(remarks) == 1 and (remark := remarks.pop()):
            # The same for all columns: once is enough.
            explanation = f"{explanation} {remark[0].upper()}{remark[1:]}.".strip()
            cells = {role: replace(cell, reason="") if cell.reason == remark else cell for role, cell in cells.items()}
        return Row(head, explanation, f"{m.n:,}", cells, drawn)


def page(document: dict[str, Any]) -> str:
    """The HTML page: one file that needs nothing else."""
    return environment(autoescape=True).get_template("index.html.j2").render(_context(document))


def model_card(document: dict[str, Any]) -> str:
    """Markdown with the front matter of the Hugging Face hub."""
    return environment(autoescape=False).get_template("MODEL_CARD.md.j2").render(_context(document))


def _context(document: dict[str, Any]) -> dict[str, Any]:
    report = _Report(document)
    alone = {"before": "measured"} if report.audit_only else {}
    titles = {**catalogue.ROLES, "change": "change", "change_base": "change, base", **alone}
    return {
        **document,
        "report": report,
        "column_titles": titles,
        "markdown_table": partial(_markdown_table, titles),
        "legend_mark": plots.legend_mark,
        "strip_scale": plots.strip_scale,
        "settings_text": yaml.safe_dump(document["settings"], sort_keys=False, allow_unicode=True),
    }


def environment(autoescape: bool) -> Environment:
    """Of the templates of this package."""
    environment = Environment(
        loader=PackageLoader("sani_dist.report"), autoescape=autoescape, undefined=StrictUndefined, finalize=_unbroken,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "number": number, "cell": _markdown}
    return environment


def _unbroken(value: Any) -> Any:
    """A line must not end between a number and the sign beside it."""
    if not isinstance(value, str):
        return value
    for sign, kept in ((" %", "\N{NO-BREAK SPACE}%"), ("< ", "<\N{NO-BREAK SPACE}"), ("> ", ">\N{NO-BREAK SPACE}")):
        value = value.replace(sign, kept)
    return value


def _head(metric: catalogue.Metric, m: Measurement) -> str:
    """The title, and of what if that is not clear from the section."""
    texts = "spans" if m.population == "sensitive" else catalogue.POPULATIONS.get(m.population, m.population)
    return ", ".join([metric.title, *([texts] if metric.section == "membership" else []), *m.group.values()])


def _writer(metric: str) -> Callable[[float], str]:
    known = catalogue.known(metric)
    return number if known is None else known.write


def _place(group: Mapping[str, str]) -> str | None:
    """The layer that an attack looked at, or the point of a grid that it tried; None for all of it."""
    return f"layer {group['layer']}" if "layer" in group else group.get("point")


def _cell(measured: Measurement | None, write: Callable[[float], str]) -> Cell:
    if measured is None:
        return Cell(NOT_THERE)
    if measured.value is None:
        return Cell(NOT_THERE, reason=measured.reason or "not measured")
    ends = (measured.low, measured.high)
    interval = "" if None in ends else span(*(write(end) for end in ends if end is not None))
    return Cell(write(measured.value), interval, measured.reason or "")


def _markdown_table(titles: dict[str, str], head: str, rows: Sequence[Row], columns: Sequence[str]) -> str:
    lines = [[head, *(titles[role] for role in columns)], ["---"] * (len(columns) + 1)]
    lines += [[_markdown(row.head), *(_figures(row.cells.get(role)) for role in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(cell: Cell | None) -> str:
    if cell is None:
        return ""
    more = "; ".join(filter(None, (cell.interval, cell.reason)))
    return _markdown(f"{cell.value} ({more})" if more else cell.value)


def _markdown(text: str) -> str:
    """Kinds come from settings and data: they must not end a table cell or open a tag."""
    for character in "\\|<>*_`[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")
