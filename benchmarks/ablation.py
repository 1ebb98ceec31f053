"""What the ablation pages of docs/ share: settings to compare, runs that are made once, and tables with the spread over seeds.

Every step of an ablation is a run of its own: one that was stopped goes on, what is finished is not made again.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness

from sani_dist import api
from sani_dist.config_file import config_from_mapping
from sani_dist.run import Run, timed

BEGIN, END = "<!-- results -->", "<!-- end of results -->"
MINUTES = "minutes"  # of a run, as a column
# Perplexities from here on are written with one decimal.
LARGE = 20


@dataclass(frozen=True)
class Setting:
    """One way to sanitise: settings of `erase` and `repair`, beside those that a whole page has in common."""

    name: str
    erase: Mapping[str, Any] = field(default_factory=dict)
    repair: Mapping[str, Any] = field(default_factory=dict)


def finished_run(folder: Path, config: Mapping[str, Any], stages: Sequence[str]) -> Run:
    """The run in that folder, made, gone on with, or taken as it is. When it is over its checkpoints, the largest part, are removed."""
    if (folder / "config.yaml").exists():
        run = Run.open(folder)
        if not run.outputs_fit(stages[-1]):
            print(f"{folder.name}, gone on with", flush=True)
            with timed(folder):
                api.resume(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        print(folder.name, flush=True)
        with timed(folder):
            run = api.sanitize(config_from_mapping(dict(config)), folder, stages=tuple(stages))
    shutil.rmtree(run.path("repair", "checkpoints"), ignore_errors=True)
    return run


def figures(
    measurements: Iterable[Mapping[str, Any]], columns: Iterable[tuple[str, str, str]], of: str = "value"
) -> dict[str, float]:
    """{column: value} of what an audit measured over all. columns: (metric, population, column). of: value, low or high."""
    found = {(m["metric"], m["population"]): m[of] for m in measurements if not m["group"]}
    values = {column: found.get((metric, population)) for metric, population, column in columns}
    return {column: value for column, value in values.items() if value is not None}


Values = Mapping[str, Mapping[str, Sequence[float]]]  # {setting: {column: its value for each seed}}


def table(settings: Values, columns: Iterable[str]) -> Iterator[str]:
    """Lines of Markdown. Columns that no setting has are left out."""
    names = [name for name in columns if any(name in found for found in settings.values())]
    yield f"| | {' | '.join(names)} |"
    yield "|---" * (1 + len(names)) + "|"
    for setting, found in settings.items():
        yield f"| {setting} | {' | '.join(spread(found.get(name, ()), name) for name in names)} |"


def spread(values: Sequence[float], name: str) -> str:
    """Mean over the seeds, lowest and highest."""
    if not values:
        return ""
    mean, low, high = statistics.mean(values), min(values), max(values)
    decimals = 0 if name == MINUTES else 3 if not name.startswith("perplexity") else 1 if mean >= LARGE else 2
    written, lowest, highest = (f"{value:.{decimals}f}" for value in (mean, low, high))
    return written if lowest == highest else f"{written} [{lowest}, {highest}]"


def means(found: Mapping[str, Sequence[float]], columns: Iterable[str]) -> dict[str, float]:
    """Of the columns there are, over the seeds."""
    return {column: statistics.mean(found[column]) for column in columns if column in found}


def provenance(rows: Iterable[harness.Row]) -> Iterator[str]:
    """One line for each run of the benchmark that `rows` come from."""
    for run in sorted({(r.date, r.commit, r.device, r.torch, r.deepspeed, r.transformers) for r in rows}):
        yield "{}, commit {}: {}; torch {}, deepspeed {}, transformers {}.".format(*run)


def write_results(page: Path, lines: Iterable[str]) -> None:
    """Put the lines between the marks of the page."""
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    results = "\n".join(lines)
    page.write_text(f"{before}{BEGIN}\n{results}\n{END}{after}")


def options(description: str | None, folder: Path, workers: int) -> argparse.ArgumentParser:
    """The options of every ablation. `folder`, `workers`: defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", choices=("reduced", "full"), default="reduced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    parser.add_argument("--folder", type=Path, default=folder)
    parser.add_argument("--launcher", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=workers)
    parser.add_argument("--render", action="store_true", help="only write the page")
    return parser
