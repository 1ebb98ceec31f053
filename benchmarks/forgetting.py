"""What makes a model forget, and whether it stays so under attack: parts of a setting on SmolLM2-135M, docs/forgetting-tables.md.

    python benchmarks/forgetting.py --seeds 0                 # reduced: the presets, between the memorised model and gold
    python benchmarks/forgetting.py --grid full --workers 2   # twice the notes, every row, more attacks

as a job of a Ray cluster, from a folder that all its nodes share:

    ray job submit -- python benchmarks/forgetting.py --grid full --folder /shared/forgetting --launcher ray --workers 8

Each seed has notes, people, training and erased units of its own. The memorised model and the gold model are trained alike, from the same
base, on the same notes; the gold model never learns a sensitive token. Every row is a run below `--folder`: what is finished there is not
made again. `--render` only writes the page, from results/forgetting.csv.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ablation
import harness
from ablation import Setting
from bars import bars
from criteria import Criterion, Figures, verdicts
from records import write_records

from examples.clinic import demo_config, write_base_model, write_general_text, write_notes
from examples.clinic.settings import CONTROL, GENERAL, HELDOUT, NOTES, memorise_config
from sani_dist import api
from sani_dist.presets import preset
from sani_dist.run import Run

PAGE = Path(__file__).parents[1] / "docs" / "forgetting-tables.md"
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "sani_dist-benchmark-forgetting"
MEMORISED, GOLD = "memorised", "gold"
SEED = ", seed "  # between a row's name and its seed, in the results' files
RELEARN_ON = ("documents", "format", "general")  # all that an attacker may have

# All rows train alike, but for what their names say.
BATCH_ROWS = 6
COMMON = {"epochs": 2, "batch_rows": BATCH_ROWS, "learning_rate": 2.5e-4, "checkpoint_every": 10**6}
# What a preset sees of the settings: the base and general text, or general text alone.
WITH_BASE = {"model": {"base": "base"}, "corpus": {"general": GENERAL}}
WITHOUT_BASE = {"corpus": {"general": GENERAL}}
AMONG_OTHERS = {"reference": "others"}  # all rows are given the base, to be compared with
NOTHING = {"layers": 0}
ATTRIBUTED = {"layers": 8, "fraction": 0.2, "select": "attribution", "reset": "zero"}
UNLIKELIHOOD = {"objectives": {"unlikelihood": 1.0}}
SURROGATES = {"objectives": {"surrogate": "en_US"}}
THIRD = {"retain": 1 / 3}
FEW = {**ATTRIBUTED, "fraction": 0.05}
FOUR_EPOCHS = {**UNLIKELIHOOD, "retain": 0.5, "epochs": 4}
UNTIL_CONTROL = {"epochs": 6, "until_control": True}
PUSH = {"objectives": {"unlikelihood": 2.0}}
PUSHED = {**PUSH, "retain": 2 / 3}
PUSHED_ERASE = {**ATTRIBUTED, "fraction": 0.03}
PUSH_AND_SURROGATES = {"objectives": {**PUSH["objectives"], **SURROGATES["objectives"]}}


def of_preset(title: str, name: str, given: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Setting:
    """The row of a preset, where there is what is `given`. more: objectives."""
    chosen = preset(name, given)
    repair = {
        **chosen["repair"],
        "batch_rows": BATCH_ROWS,
        "objectives": {**chosen["repair"]["objectives"], **(more or {})},
    }
    return Setting(title, chosen["erase"], repair)


SETTINGS = (
    Setting("repair alone", NOTHING),
    Setting("the publication", preset("paper", {})["erase"]),
    Setting("attribution", ATTRIBUTED),
    Setting("attribution, surrogates", ATTRIBUTED, SURROGATES),
    Setting("surrogates alone", NOTHING, SURROGATES),
    Setting("unlikelihood alone", NOTHING, UNLIKELIHOOD),
    Setting("unlikelihood, general text", NOTHING, {**UNLIKELIHOOD, **THIRD}),
    Setting("attribution, unlikelihood", ATTRIBUTED, UNLIKELIHOOD),
    Setting("attribution, unlikelihood, general text", ATTRIBUTED, {**UNLIKELIHOOD, **THIRD}),
    Setting("4 epochs, half general text", FEW, FOUR_EPOCHS),
    Setting("4 epochs, half general text, nothing erased", NOTHING, FOUR_EPOCHS),
    Setting("4 epochs, half general text, last 8 layers trained", FEW, {**FOUR_EPOCHS, "trainable": {"last": 8}}),
    Setting("pushed, 1 epoch", PUSHED_ERASE, {**PUSHED, "epochs": 1}),
    Setting("pushed, 3 epochs", PUSHED_ERASE, {**PUSHED, "epochs": 3}),
    Setting("pushed, 3 epochs, nothing erased", NOTHING, {**PUSHED, "epochs": 3}),
    Setting("pushed, until the control", PUSHED_ERASE, {**PUSHED, **UNTIL_CONTROL}),
    Setting("pushed and surrogates, until the control", PUSHED_ERASE, {**PUSHED, **UNTIL_CONTROL, **PUSH_AND_SURROGATES}),
    of_preset("preset balanced, no base", "balanced", WITHOUT_BASE, AMONG_OTHERS),
    of_preset("preset strong, no base", "strong", WITHOUT_BASE, AMONG_OTHERS),
    of_preset("preset balanced", "balanced", WITH_BASE),
    of_preset("preset strong", "strong", WITH_BASE),
)  # fmt: skip

ROWS = (MEMORISED, *(setting.name for setting in SETTINGS), GOLD)
SANITISE = ("prepare", "erase", "repair", "audit-after", "export", "attack")
LOOK = ("prepare", "audit-before", "attack")  # at a model as it is


@dataclass(frozen=True)
class Grid:
    """notes: of each seed that the model memorises, and as many of the control. rows: unless `--row` names others. relearn_on: of all rows
    but `judged`, of which an attacker learns anew from all there is."""

    notes: int
    rows: tuple[str, ...]
    attacks: tuple[str, ...]
    relearn_on: tuple[str, ...] = RELEARN_ON
    judged: tuple[str, ...] = ()


GRIDS = {
    "reduced": Grid(
        48, (MEMORISED, "preset balanced", "preset strong", GOLD), ("relearn", "lens", "quantise"),
        ("documents",), ("preset strong", GOLD),
    ),
    "full": Grid(104, ROWS, ("relearn", "lens", "probe", "quantise")),
}  # fmt: skip

UNTRAINED = ", never trained on"
CONTROL_GREEDY, CONTROL_LEAK = f"greedy{UNTRAINED}", f"leak@100{UNTRAINED}"
HELDOUT_PERPLEXITY, GENERAL_PERPLEXITY = "perplexity, held-out notes", "perplexity, general"
# (metric of an audit, population, column)
AUDITED = (
    ("greedy", "sensitive", "greedy"),
    ("greedy", "control", CONTROL_GREEDY),
    ("leak@100", "sensitive", "leak@100"),
    ("leak@100", "control", CONTROL_LEAK),
    ("mia_loss_auc", "sensitive", "membership AUC"),
    ("perplexity", "repair", "perplexity, the notes' other words"),
    ("perplexity", "heldout", HELDOUT_PERPLEXITY),
    ("perplexity", "general_test", GENERAL_PERPLEXITY),
    ("copied_appended", "control", "copying"),
    ("value_logprob", "control", "identifiers of others, log p"),
)
# The 95 % intervals of two of them, by document.
HIGHEST_LEAK, LOWEST_AUC, HIGHEST_AUC = "leak@100, upper end", "membership AUC, lower end", "membership AUC, upper end"
ENDS = {
    "low": (("mia_loss_auc", "sensitive", LOWEST_AUC),),
    "high": (("leak@100", "sensitive", HIGHEST_LEAK), ("mia_loss_auc", "sensitive", HIGHEST_AUC)),
}
# (attack, variant, metric, population, column); of several measurements, one for each layer, the highest counts
ATTACKED = (
    ("relearn", "nothing", "leak@100", "sensitive", "other half"),
    ("relearn", "documents", "leak@100", "sensitive", "relearnt"),
    ("relearn", "documents", "leak@100", "control", f"relearnt{UNTRAINED}"),
    ("relearn", "format", "leak@100", "sensitive", "relearnt from others' notes"),
    ("relearn", "general", "leak@100", "sensitive", "relearnt from general text"),
    ("quantise", "int8", "leak@100", "sensitive", "int8"),
    ("quantise", "int4", "leak@100", "sensitive", "int4"),
    ("lens", "each layer", "leak@100", "sensitive", "lens"),
    ("probe", "whole value", "preference", "sensitive", "probe"),
    ("probe", "whole value", "preference", "control", f"probe{UNTRAINED}"),
)
# Columns of one kind of span each, where there are enough of them to tell.
OF_KIND, FEWEST = "leak@100 of ", 10
FORGOTTEN = [name for _, _, name in AUDITED if name != CONTROL_GREEDY]
UNDER_ATTACK = [*(name for *_, name in ATTACKED), ablation.MINUTES]

# What pushing was asked to do before it was a preset, up to 0.1.
CRITERIA = (
    Criterion("pushed, 3 epochs", "greedy", ("pushed, 3 epochs", CONTROL_GREEDY)),
    Criterion("pushed, 3 epochs", HIGHEST_LEAK, ("pushed, 3 epochs", CONTROL_LEAK), plus=0.02),
    Criterion("pushed, 3 epochs", LOWEST_AUC, plus=0.55),
    Criterion("pushed, 3 epochs", HIGHEST_AUC, plus=0.45, at_least=True),
    Criterion("pushed, 3 epochs", HELDOUT_PERPLEXITY, (MEMORISED, HELDOUT_PERPLEXITY), factor=1.02),
    Criterion("pushed, 3 epochs", GENERAL_PERPLEXITY, (MEMORISED, GENERAL_PERPLEXITY), factor=1.05),
    Criterion("pushed, 3 epochs", "relearnt", (GOLD, "relearnt"), plus=0.02),
    Criterion("pushed, 3 epochs", "relearnt from others' notes", (GOLD, "relearnt from others' notes"), plus=0.02),
    Criterion("pushed, 3 epochs", "relearnt from general text", (GOLD, "relearnt from general text"), plus=0.02),
    Criterion("pushed, 3 epochs", "int4", ("pushed, 3 epochs", "leak@100"), plus=0.01),
    Criterion("pushed, 3 epochs", "lens", (GOLD, "lens"), plus=0.02),
    Criterion("pushed, 1 epoch", "leak@100", ("pushed, 1 epoch", CONTROL_LEAK), plus=0.05),
    Criterion("pushed, 1 epoch", "leak@100", (MEMORISED, "leak@100"), factor=0.1),
    Criterion(GOLD, "perplexity, the notes' other words", (MEMORISED, "perplexity, the notes' other words")),
)

Write = Callable[[Path, int, int], None]  # (folder, documents in each file, seed): NOTES, CONTROL and HELDOUT


def write_demo_notes(folder: Path, count: int, seed: int) -> None:
    for number, name in enumerate((NOTES, CONTROL, HELDOUT)):
        write_notes(folder / name, count, seed, start=number * count)


def write_other_records(folder: Path, count: int, seed: int) -> None:
    # They take a minute to make.
    if not (folder / HELDOUT).exists():
        write_records([folder / name for name in (NOTES, CONTROL, HELDOUT)], count, seed)


# {name: (who writes the text, the results' file)}
TEXTS: dict[str, tuple[Write, str]] = {
    "notes": (write_demo_notes, "forgetting"),
    "records": (write_other_records, "forgetting_records"),
}


class Seed:
    """All runs of one seed, below a folder of their own."""

    def __init__(
        self, folder: Path, seed: int, grid: Grid, write: Write, dtype: str, cluster: Mapping[str, Any]
    ) -> None:
        self.folder, self.seed, self.grid = folder / f"seed-{seed}", seed, grid
        self.dtype, self.cluster = dtype, dict(cluster)
        self.folder.mkdir(parents=True, exist_ok=True)
        write(self.folder, grid.notes, seed)
        write_general_text(self.folder / GENERAL)
        base = self.folder / "base"
        if not base.exists():
            write_base_model(base)

    def measure(self, rows: Sequence[str]) -> Iterator[tuple[str, str, float]]:
        """(row, column, value)."""
        if set(rows) != {GOLD}:
            yield from self._sanitised(rows, self._trained("memorise", {}))
        if GOLD in rows:
            yield from self._looked_at(GOLD, self._trained(GOLD, {"objectives": {}}))

    def _sanitised(self, rows: Sequence[str], memorised: Run) -> Iterator[tuple[str, str, float]]:
        if MEMORISED in rows:
            yield from self._looked_at(MEMORISED, memorised)
        for setting in SETTINGS:
            if setting.name not in rows:
                continue
            config = self._config(setting.name, memorised.path("model"))
            config["model"]["base"] = str(self.folder / "base")
            config["erase"] = {**setting.erase, "seed": self.seed}
            config["repair"] = {**COMMON, "micro_rows": self._micro_rows, "seed": self.seed, **setting.repair}
            run = ablation.finished_run(self._path(setting.name), config, SANITISE)
            yield from self._figures(setting.name, run, "after")

    def _looked_at(self, name: str, trained: Run) -> Iterator[tuple[str, str, float]]:
        config = {**self._config(name, trained.path("model")), "erase": NOTHING}
        run = ablation.finished_run(self._path(f"{name}-attacked"), config, LOOK)
        yield from self._figures(name, run, "before")

    def _figures(self, setting: str, run: Run, when: str) -> Iterator[tuple[str, str, float]]:
        highest: dict[tuple[str, ...], float] = {}
        for result in api.attacks(run):
            for m in result.measurements:
                key = (result.attack, result.variant, m.metric, m.population)
                if m.value is not None:
                    highest[key] = max(m.value, highest.get(key, 0))
        attacked = {column: highest[tuple(key)] for *key, column in ATTACKED if tuple(key) in highest}
        audited = api.measurements(run, when)
        for of, columns in (("value", AUDITED), *ENDS.items()):
            for column, value in ablation.figures(audited, columns, of).items():
                yield setting, column, value
        for one in audited:
            if one["metric"] == "leak@100" and one["group"].keys() == {"kind"} and one["n"] >= FEWEST:
                end = UNTRAINED if one["population"] == "control" else ""
                yield setting, f"{OF_KIND}{one['group']['kind']}{end}", one["value"]
        for column, value in attacked.items():
            yield setting, column, value
        # Of all stages and attacks of the row, but not of training the model it starts from.
        if run.seconds:
            yield setting, ablation.MINUTES, run.seconds / 60

    def _trained(self, name: str, repair: Mapping[str, Any]) -> Run:
        """The base trained on the notes as the demo's hospital does, with other settings of repair."""
        config = memorise_config(self.folder, self.seed, self.cluster["workers"], self.dtype)
        config["repair"] |= repair
        config["cluster"] |= self.cluster
        return ablation.finished_run(self._path(name), config, api.REPAIR_STAGES)

    def _config(self, setting: str, model: Path) -> dict[str, Any]:
        """Sensitive is what the notes' own labels say, so that no row hangs on a detector."""
        config = demo_config(self.folder, self.seed, self.cluster["workers"])
        relearn_on = RELEARN_ON if setting in self.grid.judged else self.grid.relearn_on
        return {
            "model": {"path": str(model), "dtype": self.dtype},
            "corpus": {**config["corpus"], "detect": [{"name": "annotations"}]},
            "audit": {"metrics": ["extraction", "membership", "utility", "use"], "continuations": 1},
            "attack": {"attacks": list(self.grid.attacks), "relearn_on": list(relearn_on), "seed": self.seed},
            # An attacker trains in batches of the same size.
            "repair": {"epochs": 0, "batch_rows": BATCH_ROWS, "micro_rows": self._micro_rows},
            "cluster": {**config["cluster"], **self.cluster},
        }  # fmt: skip

    @property
    def _micro_rows(self) -> int:
        return max(1, BATCH_ROWS // int(self.cluster["workers"]))

    def _path(self, name: str) -> Path:
        return self.folder / re.sub("[^a-z0-9]+", "-", name.lower())


# The page


def results(rows: Mapping[str, Sequence[harness.Row]]) -> Iterator[str]:
    """rows: of each text."""
    found, other = (_by_seed(rows[text]) for text in ("notes", "records"))
    yield from ("", "## Forgotten, and at what price", "", _plot(_by_row(found)), "")
    yield from ablation.table(_by_row(found), FORGOTTEN)
    yield from ("", "## Under attack", "")
    yield from ablation.table(_by_row(found), UNDER_ATTACK)
    yield from ("", "## What was asked for", "")
    yield from verdicts(CRITERIA, found)
    if other:
        yield from ("", "## Records of another generator", "")
        yield from ablation.table(_by_row(other), FORGOTTEN)
        yield from ("", "leak@100 by kind:", "")
        yield from _by_kind(_by_row(other))
        yield ""
        yield from ablation.table(_by_row(other), UNDER_ATTACK)
        yield ""
        yield from verdicts(CRITERIA, other)
    yield ""
    yield from ablation.provenance([*rows["notes"], *rows["records"]])


def _measured(name: str) -> list[harness.Row]:
    """Of the latest run of each row and seed; none where nobody has run it yet."""
    return harness.latest_rows(name) if (harness.RESULTS / f"{name}.csv").exists() else []


def _case(row: str, seed: int) -> str:
    return f"{row}{SEED}{seed}"


def _by_seed(measured: Iterable[harness.Row]) -> dict[int, Figures]:
    found: dict[int, dict[tuple[str, str], float]] = {}
    for one in measured:
        row, _, seed = one.case.rpartition(SEED)
        found.setdefault(int(seed), {})[row, one.metric] = one.value
    return dict(sorted(found.items()))


def _by_row(seeds: Mapping[int, Figures]) -> dict[str, dict[str, list[float]]]:
    """{row of the table: {column: its value for each seed}}, in the order of ROWS."""
    found: dict[str, dict[str, list[float]]] = {}
    for figures in seeds.values():
        for (row, column), value in figures.items():
            found.setdefault(row, {}).setdefault(column, []).append(value)
    return {row: found[row] for row in ROWS if row in found}


def _by_kind(found: ablation.Values) -> Iterator[str]:
    """A row for the sensitive spans of each setting, and one for those never trained on."""
    rows: dict[str, dict[str, Sequence[float]]] = {}
    for setting, columns in found.items():
        for column, values in columns.items():
            if column.startswith(OF_KIND):
                kind = column.removeprefix(OF_KIND)
                end = UNTRAINED if kind.endswith(UNTRAINED) else ""
                rows.setdefault(setting + end, {})[kind.removesuffix(end)] = values
    yield from ablation.table(rows, sorted({kind for columns in rows.values() for kind in columns}))


def _plot(found: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Bars of what leaks before and after relearning."""
    columns = ("other half", "relearnt")
    drawn = {name: ablation.means(of, columns) for name, of in found.items()}
    title = "leak@100 of the half an attacker does not know, before and after relearning the other"
    path = harness.RESULTS / "forgetting.svg"
    path.write_text(bars(title, drawn, lambda value: f"{value:.3f}"))
    return f"![{title}](../benchmarks/results/{path.name})"


def main() -> None:
    parser = ablation.options(__doc__, DEFAULT_FOLDER, workers=2)
    parser.add_argument(
        "--row",
        action="append",
        choices=ROWS,
        metavar="ROW",
        help=f"one of: {'; '.join(ROWS)} (default: those of the grid)",
    )
    parser.add_argument(
        "--attack",
        action="append",
        choices=sorted({attack for grid in GRIDS.values() for attack in grid.attacks}),
        help="one of those of the grid (default: all; of the reduced one relearn takes a quarter of the time)",
    )
    parser.add_argument(
        "--text", choices=TEXTS, default="notes", help="records: of another generator (benchmarks/records.py)"
    )
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="float32: four times as fast on a processor that has no bfloat16 instructions (avx512_bf16 or amx_bf16 in its flags)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if not arguments.render:
        write, name = TEXTS[arguments.text]
        device = f"{harness.this_device()}, {arguments.dtype}"
        cluster = {"launcher": arguments.launcher, "workers": arguments.workers}
        folder = arguments.folder.resolve() / f"{arguments.grid}-{arguments.text}-{arguments.dtype}"
        grid = GRIDS[arguments.grid]
        if arguments.attack:
            grid = replace(grid, attacks=tuple(arguments.attack))
        for number in arguments.seeds:
            recorder = harness.Recorder(name, device)
            seed = Seed(folder, number, grid, write, arguments.dtype, cluster)
            for row, column, value in seed.measure(arguments.row or seed.grid.rows):
                recorder.add(_case(row, number), column, value)
            recorder.save(())
    ablation.write_results(PAGE, results({text: _measured(name) for text, (_, name) in TEXTS.items()}))


if __name__ == "__main__":
    main()
