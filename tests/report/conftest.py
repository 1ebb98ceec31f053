"""Run folders made of chosen figures, by the classes that write real ones; no model is needed for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sani_dist.audit.measurement import Measurement, clopper_pearson
from sani_dist.config_file import config_from_mapping
from sani_dist.erase import Plan
from sani_dist.erase.plan import Memory, Unit
from sani_dist.run import STAGES, Run

# Words that stand in the settings of every run made here and may stand in no report.
SECRETS = ["Quackenbush", "QX-77314", "subject-3", "Nightingale"]
MakeRun = Callable[..., Run]


def share(metric: str, hits: int, n: int, population: str = "sensitive", **group: str) -> Measurement:
    """A proportion with its exact interval."""
    low, high = clopper_pearson(hits, n)
    return Measurement(metric, population, hits / n, low, high, n, group)


def perplexity(split: str, value: float) -> Measurement:
    return Measurement("perplexity", split, value, 0.9 * value, 1.1 * value, 5000, {})


BEFORE = (
    share("greedy", 120, 300),
    share("leak@1", 60, 300),
    share("leak@100", 220, 300),
    share("leak@100", 120, 150, kind="PERSON"),
    share("leak@100", 100, 150, kind="RECORD_NUMBER"),
    share("leak@100", 20, 20, context="copyable"),
    share("greedy", 0, 200, "control"),
    share("leak@100", 1, 200, "control"),
    share("leak@100", 0, 170, "control", kind="PERSON"),
    share("leak@100", 1, 30, "control", kind="RECORD_NUMBER"),
    perplexity("heldout", 2.0),
    perplexity("general_test", 24.0),
)
AFTER = (
    share("greedy", 0, 300),
    share("leak@1", 1, 300),
    share("leak@100", 9, 300),
    share("leak@100", 8, 150, kind="PERSON"),
    share("leak@100", 1, 150, kind="RECORD_NUMBER"),
    share("leak@100", 9, 20, context="copyable"),
    share("greedy", 0, 200, "control"),
    share("leak@100", 1, 200, "control"),
    share("leak@100", 0, 170, "control", kind="PERSON"),
    share("leak@100", 1, 30, "control", kind="RECORD_NUMBER"),
    Measurement("mia_loss_tpr", "sensitive", None, None, None, 30, {}, "too few controls"),
    perplexity("heldout", 2.02),
    perplexity("general_test", 26.4),
)


MEMORY = (
    Memory("mlp", "PERSON", 150, (2, 3), (0.25, 0.75)),
    Memory("mlp", "RECORD_NUMBER", 170, (2, 3), (0.6, 0.4)),
    Memory("mlp", None, 2000, (2, 3), (0.5, 0.5)),
)


def changed(
    measurements: Sequence[Measurement], metric: str, population: str = "sensitive", **fields: Any
) -> list[Measurement]:
    """The same measurements, with other fields in the one over all spans."""
    return [
        replace(m, **fields) if (m.metric, m.population, m.group) == (metric, population, {}) else m
        for m in measurements
    ]


def losses(rise: float, documents: int = 40, tokens: int = 50) -> pd.DataFrame:
    """Of held-out and general documents that differ much from each other and all lose log(1 + rise) nats a token."""
    lines = [
        {"split": split, "document": first + i, "loss": tokens * (0.5 + 0.1 * i + rise), "tokens": tokens}
        for split, first in (("heldout", 0), ("general_test", 1000))
        for i in range(documents)
    ]
    return pd.DataFrame(lines)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(before=..., after=None, ...)` -> a finished run but for its report; `after=None` makes an audit alone,
    `before=None` a model that nobody audited before it was sanitised."""

    def make(
        *, before: Sequence[Measurement] | None = BEFORE, after: Sequence[Measurement] | None = AFTER, rise: float = 0.02,
        documents: int = 40, sensitive_documents: int = 60, kinds: dict[str, int] | None = None, verify: dict[str, float] | None = None,
        memory: tuple[Memory, ...] = MEMORY, not_finite: dict[str, int] | None = None,
    ) -> Run:  # fmt: skip
        model = tmp_path / "home" / "Nightingale" / "memorised"
        config = config_from_mapping(
            {
                "model": {"path": str(model)},
                "corpus": {
                    "source": str(tmp_path / "Nightingale" / "notes.jsonl"), "subject": "patient",
                    "detect": [
                        {"name": "terms", "values": ["Quackenbush"]},
                        {"name": "presidio", "patterns": [{"kind": "RECORD_NUMBER", "regex": "QX-77314"}]},
                    ],
                    "target": {"values": ["QX-77314"], "subjects": ["subject-3"]},
                },
                "verify": verify or {},
            }
        )  # fmt: skip
        stages = STAGES if after is not None else ("prepare", "audit-before", "report")
        stages = tuple(stage for stage in stages if stage != "audit-before" or before is not None)
        run = Run.create(tmp_path / "run", config, stages)
        _write(run, "source.json", {"model_sha256": "a" * 64})
        summary = {
            "documents": {"repair": 60, "control": 40},
            "documents_with_spans": {"repair": 60, "control": 40},
            "kinds": {"repair": kinds or {"PERSON": 150, "RECORD_NUMBER": 150}},
            "audited": {"repair": "spans", "control": "spans"},
            "score": None,
            "tokens": {"repair": {"rows": 9, "learnable": 7000, "sensitive": 3000, "sensitive_share": 0.3}},
        }
        run.mark_done("prepare", [run.path("source.json"), _write(run, "corpus/summary.json", summary)])
        behind = {"sensitive": sensitive_documents, "control": 40}

        def audit(when: str, measured: Sequence[Measurement]) -> None:
            measured = [replace(m, documents=behind.get(m.population)) for m in measured]
            document = {"schema": 1, "corpus_sha256": "b" * 64, "measurements": [asdict(m) for m in measured]}
            if when == "after":
                document["not_finite"] = not_finite or {}
            table = run.path("audit", f"{when}-losses.parquet")
            losses(0.0 if when == "before" else rise, documents).to_parquet(table)
            run.mark_done(f"audit-{when}", [_write(run, f"audit/{when}.json", document), table])

        if before is not None:
            audit("before", before)
        if after is not None:
            Plan(
                "a" * 64,
                0,
                "attribution",
                "zero",
                (Unit(2, "mlp", (1, 5)), Unit(2, "head", (1,)), Unit(3, "mlp", (0, 2, 9))),
                memory=memory,
            ).write(run.path("erase", "plan.json"))
            run.mark_done("erase", [run.path("erase", "plan.json")])
            run.mark_done("repair", [])
            audit("after", after)
            steps = [
                {"stage": "repair", "done": s, "total": 6, "unit": "steps", "loss": 3 / s, "learning_rate": 1e-4}
                for s in range(1, 7)
            ]
            # A run that was stopped after step 4 and went on from its checkpoint of step 3.
            lines = [*steps[:4], *steps[3:]]
            run.path("metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            run.path("model").mkdir()
            run.mark_done(
                "export", [_write(run, "model/config.json", {"num_hidden_layers": 4, "intermediate_size": 10})]
            )
        return run

    return make


def _write(run: Run, name: str, document: Any) -> Path:
    path = run.path(name)
    path.write_text(json.dumps(document))
    return path
