"""What the benchmarks share: ranks in fresh processes, peak memory, result files, and claims with their targets.

A benchmark is a script. Started by a person it runs its cases in turn (A, B, A, B, ...), so that a slow minute of the
machine falls on both; started with `--result` it is one rank of one measurement and writes what it measured there.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sani_dist.orchestrate.local import environment, free_port

RESULTS = Path(__file__).parent / "results"
SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Row:
    """One measured value. All rows of one run of a benchmark share `date`."""

    date: str
    commit: str
    device: str
    torch: str
    deepspeed: str
    transformers: str
    case: str
    metric: str
    value: float


@dataclass(frozen=True)
class Claim:
    """median(`case`) / median(`against`) of `metric` should be at most `at_most`, or at least `at_least`."""

    metric: str
    case: str
    against: str
    at_most: float | None = None
    at_least: float | None = None

    def ratio(self, rows: Iterable[Row]) -> float:
        values: dict[str, list[float]] = {self.case: [], self.against: []}
        for row in rows:
            if row.metric == self.metric and row.case in values:
                values[row.case].append(row.value)
        return statistics.median(values[self.case]) / statistics.median(values[self.against])

    @property
    def target(self) -> str:
        return f"at most {self.at_most}" if self.at_most is not None else f"at least {self.at_least}"

    def met(self, rows: Iterable[Row]) -> bool:
        ratio = self.ratio(rows)
        return ratio <= self.at_most if self.at_most is not None else ratio >= (self.at_least or 0)


class Recorder:
    """Collects the rows of one run and appends them to `results/<name>.csv` in one go: a run that fails leaves no rows."""

    def __init__(self, name: str, device: str | None = None) -> None:
        """`device`: what was measured on, if not this machine."""
        self.path = RESULTS / f"{name}.csv"
        self.rows: list[Row] = []
        self._constant = {
            "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "commit": _commit(), "device": device or this_device(),
            "torch": version("torch"), "deepspeed": version("deepspeed"), "transformers": version("transformers"),
        }  # fmt: skip

    def add(self, case: str, metric: str, value: float) -> None:
        self.rows.append(Row(**self._constant, case=case, metric=metric, value=value))
        print(f"{case}: {metric} {value:.6g}", flush=True)

    def save(self, claims: Iterable[Claim]) -> None:
        """Append the rows and print what they say about the claims."""
        new = not self.path.exists()
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, [f.name for f in fields(Row)], lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(asdict(row) for row in self.rows)
        for claim in claims:
            verdict = "met" if claim.met(self.rows) else "MISSED"
            print(
                f"{claim.metric}: {claim.case} / {claim.against} = {claim.ratio(self.rows):.3g}, {claim.target}: {verdict}"
            )


def latest_rows(name: str) -> list[Row]:
    """The rows of the latest run of every case in `results/<name>.csv`."""
    with (RESULTS / f"{name}.csv").open(newline="") as stream:
        rows = [Row(**{**line, "value": float(line["value"])}) for line in csv.DictReader(stream)]  # type: ignore[arg-type]
    last = {row.case: row.date for row in sorted(rows, key=lambda row: row.date)}
    return [row for row in rows if row.date == last[row.case]]


def command_line(
    description: str | None, compare: Callable[[Path, int], None], measure: Callable[[argparse.Namespace], None],
    *, model: Path, repeats: int, cases: Sequence[str] = (),
) -> None:  # fmt: skip
    """Started by a person: `compare(model, repeats)`. Started by `run_ranks`: `measure`, with model, repeats, case and result.

    `model`, `repeats`: defaults. `cases`: what `--case` may be, if a rank measures one at a time.
    """
    arguments = options(description, model=model, repeats=repeats, cases=cases).parse_args()
    if arguments.result:
        measure(arguments)
    else:
        compare(arguments.model, arguments.repeats)


def options(
    description: str | None, *, model: Path, repeats: int, cases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """The options of every benchmark; one may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, default=model, help="where the checkpoint is or will be")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--case", choices=cases or None, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


def run_ranks(script: str, arguments: Iterable[str], ranks: int = 2) -> list[dict[str, Any]]:
    """Run `script` as `ranks` fresh processes; returns what each rank gave to `report`. Raises when one fails."""
    with tempfile.TemporaryDirectory(prefix="sani_dist-benchmark-") as name, contextlib.ExitStack() as stack:
        folder, port = Path(name), free_port()
        command = [sys.executable, script, *arguments, "--result", str(folder)]
        logs = [stack.enter_context((folder / f"{rank}.log").open("wb")) for rank in range(ranks)]
        processes = [
            subprocess.Popen(command, env=environment(r, ranks, port), stdout=log, stderr=subprocess.STDOUT)
            for r, log in enumerate(logs)
        ]
        try:
            while any(p.poll() is None for p in processes) and all(p.poll() in (None, 0) for p in processes):
                time.sleep(0.1)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        # Lowest code first: a rank that failed by itself (positive) comes after those killed here for its sake (negative).
        code, failed = max((p.returncode, rank) for rank, p in enumerate(processes))
        if any(p.returncode for p in processes):
            raise SystemExit(f"rank {failed} ended with {code}:\n" + (folder / f"{failed}.log").read_text()[-4000:])
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]


def report(folder: Path, measured: dict[str, Any]) -> None:
    """Called once by a rank: hands its measurements to `run_ranks`."""
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(measured))


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Bytes of this process at their highest inside the block, above their level at its start; filled in at its end.

    `rss`: resident memory, the kernel's high-water mark VmHWM, which misses nothing and costs nothing; writing 5 to
    clear_refs resets it. It counts the pages of memory-mapped files, which the kernel may take back. `anonymous`: what it may not,
    RssAnon + RssShmem; there is no mark for it, so it is sampled every SAMPLE_SECONDS.
    """
    gc.collect()
    peak: dict[str, int] = {}
    start = _status()
    Path("/proc/self/clear_refs").write_text("5")
    highest, ended = start, threading.Event()

    def sample() -> None:
        nonlocal highest
        while not ended.wait(SAMPLE_SECONDS):
            highest = max(highest, _status(), key=_anonymous)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        end = _status()
        peak["rss"] = end["VmHWM"] - start["VmRSS"]
        peak["anonymous"] = _anonymous(max(highest, end, key=_anonymous)) - _anonymous(start)


def highest_rss() -> int:
    """Bytes of resident memory of this process at their highest since it began."""
    return _status()["VmHWM"]


def _status() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def _anonymous(status: dict[str, int]) -> int:
    return status["RssAnon"] + status["RssShmem"]


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=True).stdout.strip()


def this_device() -> str:
    """The processor's name and the cores this process may use."""
    models = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{models[0] if models else 'unknown CPU'}, {len(os.sched_getaffinity(0))} cores"
