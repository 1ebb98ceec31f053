"""What the commands call: `sanitize`, `resume`, `audit`, `attack`, `report`, `verify`.

Imports of torch and the stages wait until a function needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sani_dist.config import AuditSettings, Config, CorpusSettings, ModelSettings, VerifySettings
from sani_dist.config_file import config_from_mapping, config_to_mapping
from sani_dist.errors import InputError, SaniError

if TYPE_CHECKING:
    from sani_dist.attack.result import Result
    from sani_dist.report import Outcome
    from sani_dist.run import Run

OnEvent = Callable[[dict[str, Any]], None]

# What the commands that do a part of the work consist of.
ERASE_STAGES = ("prepare", "erase", "export")
REPAIR_STAGES = ("prepare", "erase", "repair", "export")
AUDIT_STAGES = ("prepare", "audit-before", "report")
ATTACK_STAGES = ("prepare", "audit-before", "attack", "report")


def sanitize(
    config: Config, folder: Path, *, stages: tuple[str, ...] | None = None, on_event: OnEvent = lambda event: None
) -> Run:
    """Run all stages (or some) in a new run folder; returns the finished run, its model under `folder/model`.

    Raises:
        InputError: settings, model or data that cannot work; found before any worker starts wherever possible.
        RunError: the run failed; `resume(folder)` goes on from what it had finished.
    """
    from sani_dist import orchestrate
    from sani_dist.lock import alone
    from sani_dist.run import STAGES, Run, make_folder
    from sani_dist.stages import preflight

    orchestrate.check(config.cluster)
    orchestrate.check_ranks(config.cluster)
    description = preflight.check(config)
    check_disk(folder, description["disk_bytes"])
    if "attack" in (stages or STAGES):
        preflight.check_attackable(config)
    make_folder(folder)
    with alone(folder) as lock:
        return _execute(Run.create(folder, config, stages or STAGES), on_event, lock)


def prepare(config: Config, folder: Path, *, on_event: OnEvent = lambda event: None) -> Run:
    """The stage before any rank starts, in a new run folder; then a launcher starts `launch/worker.py` on that folder."""
    from sani_dist import orchestrate
    from sani_dist.lock import alone
    from sani_dist.metrics import Metrics
    from sani_dist.run import STAGES, Run, make_folder
    from sani_dist.stages import preflight

    orchestrate.check(config.cluster)
    preflight.check(config)
    make_folder(folder)
    with alone(folder):
        run = Run.create(folder, config, STAGES)
        orchestrate.prepare(run, Metrics(run.path("metrics.jsonl"), on_event=on_event))
        return run


def resume(folder: Path, *, cluster: Mapping[str, Any] | None = None, on_event: OnEvent = lambda event: None) -> Run:
    """Go on with a run that was stopped: finished stages are skipped, repair goes on from its last checkpoint.

    `cluster`: settings of that section to change, since the machines may be others now.
    """
    from sani_dist import orchestrate
    from sani_dist.lock import alone
    from sani_dist.run import Run
    from sani_dist.stages import preflight

    Run.open(folder)
    with alone(folder) as lock:
        run = Run.open(folder)
        if cluster:
            run.change_cluster(cluster)
        orchestrate.check(run.config.cluster)
        orchestrate.check_ranks(run.config.cluster)
        preflight.check(run.config)
        if run.path("source.json").exists():
            preflight.check_unchanged(run)
        return _execute(run, on_event, lock)


def audit(
    model: Path, corpus: CorpusSettings, folder: Path, *, settings: AuditSettings | None = None, workers: int = 1,
    on_event: OnEvent = lambda event: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure what can be extracted from any Hugging Face model folder; returns the measurements of `audit/before.json`."""
    config = Config.model_validate(
        {
            "model": ModelSettings(path=model),
            "corpus": corpus,
            "erase": {"layers": 0},
            "audit": settings or AuditSettings(),
            "cluster": {"workers": workers},
        }
    )
    run = sanitize(config, folder, stages=AUDIT_STAGES, on_event=on_event)
    return measurements(run, "before")


def attack(
    folder: Path, *, changes: Mapping[str, Mapping[str, Any]] | None = None, on_event: OnEvent = lambda event: None
) -> Run:
    """Attack the model that a finished run exported (or audited), on the text of that run; results in `audit/attacks.json` and the report.

    `changes`: {"attack": {...}, "cluster": {...}}, settings that differ from the run's. What was attacked before with the same settings
    is not attacked again.
    """
    from sani_dist import orchestrate
    from sani_dist.lock import alone
    from sani_dist.run import Run
    from sani_dist.stages import preflight
    from sani_dist.stages.prepare import prepare_attack

    Run.open(folder)
    with alone(folder) as lock:
        run = Run.open(folder)
        if any(not run.is_done(stage) for stage in run.stages if stage not in ("attack", "report")):
            raise InputError(
                f"{folder} is not finished, or was purged: its text is needed; `sani-dist resume {folder}` makes what is missing"
            )
        preflight.check_attackable(run.config)
        run.add_attack(changes or {})
        orchestrate.check(run.config.cluster)
        orchestrate.check_ranks(run.config.cluster)
        preflight.check(run.config)
        preflight.check_unchanged(run)
        if run.is_done("attack"):
            # The same path may hold another text by now, and then it is not.
            prepare_attack(run)
        return _execute(run, on_event, lock)


def measurements(run: Run, when: str) -> list[dict[str, Any]]:
    """The measurements of an audit, "before" or "after". Raises InputError when the run has not made it."""
    from sani_dist.run import read_json

    path = run.path("audit", f"{when}.json")
    if not path.exists():
        raise InputError(f"{run.folder} has no audit {when}; `sani-dist resume {run.folder}` makes what is missing")
    found = read_json(path).get("measurements")
    if not isinstance(found, list):
        raise InputError(f"{path} is damaged; `sani-dist resume {run.folder}` makes it again")
    return found


def not_finite(run: Run) -> int:
    """How many scores of the run's audits are no finite numbers: with one, the model is broken, and no limit is kept."""
    from sani_dist.run import read_json

    audits = [path for when in ("before", "after") if (path := run.path("audit", f"{when}.json")).exists()]
    return sum(int(count) for path in audits for count in read_json(path).get("not_finite", {}).values())


def attacks(run: Run) -> list[Result]:
    """What the attacks on a run's model got out; none where it was not attacked."""
    from sani_dist.attack.result import Result

    path = run.path("audit", "attacks.json")
    return [Result.of(entry) for entry in json.loads(path.read_text())["results"]] if path.exists() else []


def regime(run: Run) -> str:
    """Whether a run's forgetting is reversible and catastrophic, in a sentence of its report; empty where that cannot be told."""
    path = run.path("report", "report.json")
    return str(json.loads(path.read_text()).get("regime", "")) if path.exists() else ""


def report(folder: Path, limits: Mapping[str, float] | None = None) -> Path:
    """Write the report of a finished run again; returns its page. `limits` (names of `verify` settings) go before the run's own."""
    from sani_dist.lock import alone
    from sani_dist.report import write_report
    from sani_dist.run import Run

    run = Run.open(folder)
    with alone(folder):
        write_report(run, _limits(run, limits))
    return run.path("report", "index.html")


def verify(folder: Path, limits: Mapping[str, float] | None = None) -> list[Outcome]:
    """Whether a finished run keeps its limits, one outcome for each. `limits` go before those of the run's settings.

    Raises InputError when there is no limit, or no audit to test it on.
    """
    from sani_dist.report import verify
    from sani_dist.run import Run

    run = Run.open(folder)
    outcomes = verify(run, _limits(run, limits))
    if not outcomes:
        raise InputError("verify: no limit is set; give one, for example --max-leak100 0.05, or a section `verify`")
    return outcomes


def _limits(run: Run, given: Mapping[str, float] | None) -> VerifySettings:
    mapping = config_to_mapping(run.config)
    return config_from_mapping({**mapping, "verify": {**mapping["verify"], **(given or {})}}).verify


def check_disk(folder: Path, needed: int) -> None:
    """Raises InputError when the disk of `folder` has less than `needed` bytes free."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"not enough disk at {existing}: the run needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        )


def _execute(run: Run, on_event: OnEvent, lock: int | None) -> Run:
    """`lock`: see `lock.alone`."""
    from sani_dist import orchestrate
    from sani_dist.metrics import Metrics
    from sani_dist.report import write_report
    from sani_dist.stages.prepare import prepare_attack

    run.lock = lock
    try:
        if "prepare" in run.pending():
            orchestrate.prepare(run, Metrics(run.path("metrics.jsonl"), on_event=on_event))
        if "attack" in run.pending():
            prepare_attack(run)
        if run.pending() == ["report"]:
            write_report(run)
        elif run.pending():
            orchestrate.start_ranks(run, on_event)
    except SaniError:
        with contextlib.suppress(
            OSError
        ):  # on a full disk the reason for the failure must come through, not that of this line
            run.update(status="failed", ended=time.time())
        raise
    run.update(status="done", ended=time.time())
    return run
