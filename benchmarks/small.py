"""A small bench for choosing: 60 letters of 100 tokens that SmolLM2-135M learns by heart in minutes, so that many ideas can be tried.

    python benchmarks/small.py --seeds 0 1 2                          # memorised, base, gold and the presets
    python benchmarks/small.py --settings ideas.yaml --row "my idea"  # {my idea: {erase: {...}, repair: {...}}}
    python benchmarks/small.py --confirm --row "preset strong"        # once what is chosen is frozen

Ideas are tried on the layout `letting`; `claims`, of another generator, is for confirmation only and is opened by `--confirm`: whoever
chooses by it has nothing left to confirm with. Every row is a run below `--folder`, of a model that has been trained once for each seed,
on one rank of all cores: it is sanitised, audited with the use that must stay, and attacked by relearning half of the letters.
What is finished is not made again. Values are appended to results/small.csv; the latest are the table of docs/forgetting.md, which
`--render` only writes again.

gold: the base trained on the letters like the memorised model, without a sensitive token; base: trained on nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ablation
import forgetting
import harness
import yaml
from ablation import MINUTES, Setting
from forgetting import of_preset
from letters import claims, letting, write_letters

from examples.clinic.english import write_general_text
from examples.clinic.model import write_base_model
from examples.clinic.settings import CONTROL, GENERAL, HELDOUT, NOTES
from sani_dist import api
from sani_dist.run import Run

NAME = "small"
PAGE = Path(__file__).parents[1] / "docs" / "forgetting.md"
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "sani_dist-benchmark-small"
LAYOUTS = {"letting": letting, "claims": claims}
TRIED, CONFIRMED = "letting", "claims"
MEMORISED, BASE, GOLD = "memorised", "base", "gold"
TRAINED = (MEMORISED, GOLD)
LETTERS = 60
ARTICLES = 100  # of general text, a fifth of which is scored
ROW_LENGTH, BATCH_ROWS = 256, 6  # two letters to a row
EPOCHS = 12  # until most letters are known by heart

COMMON = {"batch_rows": BATCH_ROWS, "micro_rows": BATCH_ROWS, "checkpoint_every": 10**6}
NOTHING = {"layers": 0}
SETTINGS = (
    Setting("repair alone", NOTHING, {"epochs": 3, "learning_rate": 2.5e-4}),
    Setting("pushed, 3 epochs", forgetting.PUSHED_ERASE, {**forgetting.PUSHED, "epochs": 3, "learning_rate": 2.5e-4}),
    of_preset("preset balanced, no base", "balanced", forgetting.WITHOUT_BASE, forgetting.AMONG_OTHERS),
    of_preset("preset strong, no base", "strong", forgetting.WITHOUT_BASE, forgetting.AMONG_OTHERS),
    of_preset("preset balanced", "balanced", forgetting.WITH_BASE),
    of_preset("preset strong", "strong", forgetting.WITH_BASE),
)
SANITISE = ("prepare", "erase", "repair", "audit-after", "export")
LOOK = ("prepare", "audit-before")

UNTRAINED = ", never trained on"
COPYING, LOGPROB = "copying", "identifiers of others, log p"
# (metric of an audit, population, column)
AUDITED = (
    ("greedy", "sensitive", "greedy"),
    ("leak@100", "sensitive", "leak@100"),
    ("leak@100", "control", f"leak@100{UNTRAINED}"),
    ("mia_loss_auc", "sensitive", "membership AUC"),
    ("perplexity", "heldout", "perplexity, held-out letters"),
    ("perplexity", "general_test", "perplexity, general"),
    ("copied_appended", "control", COPYING),
    ("copied", "control", "copying, natural"),
    ("value_logprob", "control", LOGPROB),
    ("value_rank", "control", "identifiers of others, rank"),
)
# (variant of relearning, population, column): leak@100
RELEARNT = (
    ("nothing", "sensitive", "other half"),
    ("documents", "sensitive", "relearnt"),
    ("documents", "control", f"relearnt{UNTRAINED}"),
)
# Made of others when a table is written: what is left of copying, and how far log p has moved from the base's.
KEPT, MOVED = "copying kept", "log p moved"
COLUMNS = [*(c for *_, c in AUDITED), KEPT, MOVED, *(c for *_, c in RELEARNT), MINUTES]
SEED = ", seed "  # between a row's name and its seed in the CSV


@dataclass(frozen=True)
class Size:
    """How much is trained on; smaller in tests. write_base: makes the model that all start from."""

    letters: int = LETTERS
    articles: int = ARTICLES
    epochs: int = EPOCHS
    write_base: Callable[[Path], None] = write_base_model


class Bench:
    """All runs of one layout and seed, below a folder of their own."""

    def __init__(
        self,
        folder: Path,
        layout: str,
        seed: int,
        threads: int,
        size: Size = Size(),
        dtype: str = "float32",
        attacks: bool = True,
    ) -> None:
        self.folder = folder / dtype / layout / f"seed-{seed}"
        self.seed, self.threads, self.size, self.dtype, self.attacks = seed, threads, size, dtype, attacks
        self.folder.mkdir(parents=True, exist_ok=True)
        texts = [self.folder / name for name in (NOTES, CONTROL, HELDOUT)]
        write_letters(LAYOUTS[layout], texts, size.letters, seed)
        _write_articles(self.folder / GENERAL, size.articles)
        self.base = folder / "base"
        if not self.base.exists():
            size.write_base(self.base)

    def figures(self, name: str, settings: Mapping[str, Setting]) -> Iterator[tuple[str, float]]:
        """(column, value) of a row: one of `settings`, or a model as it is."""
        if name in settings:
            run, when = self._sanitised(settings[name]), "after"
        else:
            run, when = self._looked_at(name), "before"
        yield from ablation.figures(api.measurements(run, when), AUDITED).items()
        yield MINUTES, run.seconds / 60
        if self.attacks:
            yield from self._relearnt(name, run.path("model") if name in settings else self._model(name))

    def _relearnt(self, name: str, model: Path) -> Iterator[tuple[str, float]]:
        """(column, value) of a model that an attacker trains: a run of its own, so that it can be added to a row that has been made."""
        run = ablation.finished_run(self._path(f"{name}-attacked"), self._config(model), (*LOOK, "attack"))
        leaks = {
            (result.variant, m.population): m.value
            for result in api.attacks(run)
            for m in result.measurements
            if (result.attack, m.metric) == ("relearn", "leak@100") and not m.group and m.value is not None
        }
        for variant, population, column in RELEARNT:
            if (variant, population) in leaks:
                yield column, leaks[variant, population]

    def _sanitised(self, setting: Setting) -> Run:
        config = self._config(self._trained(MEMORISED))
        config["model"]["base"] = str(self.base)
        config["erase"] = {**setting.erase, "seed": self.seed}
        config["repair"] = {**COMMON, "seed": self.seed, **setting.repair}
        return ablation.finished_run(self._path(setting.name), config, SANITISE)

    def _looked_at(self, name: str) -> Run:
        return ablation.finished_run(self._path(f"{name}-looked-at"), self._config(self._model(name)), LOOK)

    def _model(self, name: str) -> Path:
        return self._trained(name) if name in TRAINED else self.base

    def _trained(self, name: str) -> Path:
        """The base trained on the letters, on all of their tokens or, for gold, on those that are not sensitive."""
        config = self._config(self.base)
        config["repair"] = {
            "objectives": {"plain": name == MEMORISED}, "epochs": self.size.epochs, "retain": 0.25, "batch_rows": 4, "micro_rows": 4,
            "learning_rate": 5e-4, "betas": [0.9, 0.95], "checkpoint_every": 10**6, "seed": self.seed,
        }  # fmt: skip
        return ablation.finished_run(self._path(f"{name}-trained"), config, api.REPAIR_STAGES).path("model")

    def _config(self, model: Path) -> dict[str, Any]:
        texts = {"source": NOTES, "control": CONTROL, "heldout": HELDOUT, "general": GENERAL}
        return {
            "model": {"path": str(model), "dtype": self.dtype},
            "corpus": {
                **{key: str(self.folder / name) for key, name in texts.items()},
                "subject": "patient", "spans": "spans", "detect": [{"name": "annotations"}], "row_length": ROW_LENGTH,
            },
            "erase": NOTHING,
            "audit": {"metrics": ["extraction", "membership", "use"], "samples": [100], "micro_rows": 8},
            "attack": {"attacks": ["relearn"], "relearn_on": ["documents"], "seed": self.seed},
            # An attacker trains in batches of this size.
            "repair": {**COMMON, "epochs": 0},
            "cluster": {"workers": 1, "threads": self.threads},
        }  # fmt: skip

    def _path(self, name: str) -> Path:
        return self.folder / re.sub("[^a-z0-9]+", "-", name.lower())


def _write_articles(path: Path, count: int) -> None:
    write_general_text(path)
    with path.open(encoding="utf-8") as file:
        lines = list(islice(file, count))
    path.write_text("".join(lines), encoding="utf-8")


def read_settings(path: Path | None) -> dict[str, Setting]:
    """By name: those of this file, and of a YAML file {name: {erase: {...}, repair: {...}}}."""
    found = {setting.name: setting for setting in SETTINGS}
    for name, given in (yaml.safe_load(path.read_text()) if path is not None else {}).items():
        found[name] = Setting(name, given.get("erase", NOTHING), given.get("repair", {}))
    return found


def table(rows: Sequence[harness.Row], layout: str) -> Iterator[str]:
    """Lines of Markdown: means over the seeds, lowest and highest."""
    by_seed: dict[str, dict[str, dict[str, float]]] = {}
    for one in rows:
        name, _, seed = one.case.rpartition(SEED)
        if name.startswith(f"{layout}: "):
            by_seed.setdefault(seed, {}).setdefault(name.removeprefix(f"{layout}: "), {})[one.metric] = one.value
    found: dict[str, dict[str, list[float]]] = {}
    for of_seed in by_seed.values():
        for name, columns in of_seed.items():
            for column, value in {**columns, **_compared(columns, of_seed)}.items():
                found.setdefault(name, {}).setdefault(column, []).append(value)
    yield from ablation.table(found, COLUMNS)


def _compared(row: Mapping[str, float], rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The share of copying that is left, of the better of memorised and base, and the relative change of log p against the base."""
    found = {}
    best = max((rows[name].get(COPYING, 0.0) for name in (MEMORISED, BASE) if name in rows), default=0.0)
    if best and COPYING in row:
        found[KEPT] = row[COPYING] / best
    base = rows.get(BASE, {}).get(LOGPROB)
    if base and LOGPROB in row:
        found[MOVED] = row[LOGPROB] / base - 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED")
    parser.add_argument(
        "--row", action="append", metavar="ROW", help="memorised, base, gold or a setting; default: all"
    )
    parser.add_argument("--settings", type=Path, help="YAML with more settings by name")
    parser.add_argument("--confirm", action="store_true", help=f"on {CONFIRMED}, which is for confirmation only")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the models")
    parser.add_argument("--no-attack", action="store_true", help="leave relearning out; a later call may add it")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--render", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    layout, settings = CONFIRMED if arguments.confirm else TRIED, read_settings(arguments.settings)
    wanted = arguments.row or [MEMORISED, BASE, GOLD, *settings]
    unknown = set(wanted) - {MEMORISED, BASE, GOLD, *settings}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    for seed in () if arguments.render else arguments.seeds:
        folder, attacks = arguments.folder.resolve(), not arguments.no_attack
        bench = Bench(folder, layout, seed, arguments.threads, dtype=arguments.dtype, attacks=attacks)
        for name in wanted:
            # A row is a case of its own: one that fails, or a morning later, leaves the others.
            recorder = harness.Recorder(NAME, f"{harness.this_device()}, {arguments.dtype}")
            for column, value in bench.figures(name, settings):
                recorder.add(f"{layout}: {name}{SEED}{seed}", column, value)
            recorder.save(())
    rows = harness.latest_rows(NAME)
    print("\n".join(table(rows, layout)))
    ablation.write_results(PAGE, ["", *table(rows, TRIED), "", *ablation.provenance(rows)])


if __name__ == "__main__":
    main()
