"""What TensorBoard will show of a run, read back from what it stored."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from sani_dist.audit.measurement import Measurement
from sani_dist.run import Run
from sani_dist.tracking import Curves


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of all event files, in the order of their names."""
    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events(path.read_bytes()):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def events(content: bytes) -> Iterator[Event]:
    """A record is its length (8 bytes), a checksum (4), an event, a checksum (4)."""
    start = 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        yield Event.FromString(content[start + 12 : start + 12 + length])
        start += 16 + length


def test_a_run_leaves_its_curves(finished_run: Run) -> None:
    found = scalars(finished_run.path("logs"))
    lines = [json.loads(line) for line in finished_run.path("metrics.jsonl").read_text().splitlines()]
    steps = {line["done"]: line for line in lines if line["stage"] == "repair"}
    for name in ("loss", "learning_rate", "tokens_per_second", "learnable_tokens_per_second", "peak_memory_bytes"):
        assert found[f"repair/{name}"] == pytest.approx({n: line[name] for n, line in steps.items()}, rel=1e-6)
    for when, step in (("before", 0), ("after", 1)):
        measured = json.loads(finished_run.path("audit", f"{when}.json").read_text())["measurements"]
        (perplexity,) = (m["value"] for m in measured if m["metric"] == "perplexity" and m["population"] == "repair")
        assert found["audit/perplexity/repair"][step] == pytest.approx(perplexity, rel=1e-6)


def test_only_what_was_measured_over_all_is_a_curve(tmp_path: Path) -> None:
    curves = Curves(tmp_path)
    curves.add_audit("after", [
        Measurement("greedy", "control", 0.25, 0.1, 0.4, 8, {}),
        Measurement("greedy", "control", 0.5, 0.1, 0.9, 4, {"kind": "PERSON"}),
        Measurement("exposure", "control", None, None, None, 0, {}, "too few"),
        Measurement("samples_to_leak", "control", float("inf"), None, None, 8, {}),
    ])  # fmt: skip
    assert scalars(tmp_path) == {"audit/greedy/control": {1: 0.25}}


def test_other_ranks_and_runs_without_values_leave_no_file(tmp_path: Path) -> None:
    Curves(tmp_path, enabled=False).add(1, {"loss": 1.0})
    Curves(tmp_path)
    assert not list(tmp_path.iterdir())
