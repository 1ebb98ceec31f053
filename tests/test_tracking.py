"""What TensorBoard, MLflow and Weights & Biases will show of a run, read back from what they stored."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tensorboardX.proto.event_pb2 import Event
from wandb.proto.wandb_internal_pb2 import Record

from sani_dist.audit.measurement import Measurement
from sani_dist.config import TrackingSettings
from sani_dist.errors import InputError
from sani_dist.run import Run
from sani_dist.tracking import Curves, check_installed


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


def records(content: bytes) -> Iterator[Record]:
    """Of a file of Weights & Biases that is shorter than a block (32 KiB): 7 bytes, then records as LevelDB's log has them, each of
    a checksum (4 bytes), its length (2), its type (1: whole) and the record."""
    assert len(content) < 2**15
    start = 7
    while start < len(content):
        length, kind = struct.unpack_from("<HB", content, start + 4)
        assert kind == 1
        yield Record.FromString(content[start + 7 : start + 7 + length])
        start += 7 + length


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
    curves = Curves(tmp_path, TrackingSettings())
    curves.add_audit("after", [
        Measurement("greedy", "control", 0.25, 0.1, 0.4, 8, {}),
        Measurement("greedy", "control", 0.5, 0.1, 0.9, 4, {"kind": "PERSON"}),
        Measurement("exposure", "control", None, None, None, 0, {}, "too few"),
        Measurement("samples_to_leak", "control", float("inf"), None, None, 8, {}),
    ])  # fmt: skip
    assert scalars(tmp_path) == {"audit/greedy/control": {1: 0.25}}


def test_other_ranks_and_runs_without_values_leave_no_file(tmp_path: Path) -> None:
    Curves(tmp_path, TrackingSettings(), enabled=False).add(1, {"loss": 1.0})
    Curves(tmp_path, TrackingSettings())
    assert not list(tmp_path.iterdir())


def test_mlflow_has_one_run_for_all_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logs = tmp_path / "logs"
    logs.mkdir()
    for step in (1, 2):
        curves = Curves(logs, TrackingSettings(to=("mlflow",), project="clinic"))
        curves.add(step, {"repair/loss": 0.5 * step})
        curves.add(0, {"audit/leak@100/sensitive": 0.25})
        curves.close()

    client = MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("clinic").experiment_id])
    history = client.get_metric_history(run.info.run_id, "repair/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 1.0)]
    assert run.data.metrics["audit/leak_at_100/sensitive"] == 0.25


def test_weights_and_biases_gets_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    curves = Curves(tmp_path, TrackingSettings(to=("wandb",)))
    curves.add(7, {"repair/loss": 0.125})
    curves.add(0, {"audit/greedy/control": 0.5})
    curves.close()

    (stored,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    values = {}
    for record in records(stored.read_bytes()):
        for item in record.history.item:
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        assert not record.HasField("output")
        assert not record.HasField("output_raw")
    assert values["repair/loss"] == 0.125
    assert values["repair/step"] == 7
    assert values["audit/greedy/control"] == 0.5
    assert values["audit/step"] == 0


def test_a_tracker_that_fails_costs_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    curves = Curves(tmp_path, TrackingSettings(to=("mlflow", "tensorboard")))
    curves.add(1, {"repair/loss": 0.5})
    curves.add(2, {"repair/loss": 0.25})
    curves.close()
    assert [record.message.split(" (")[0] for record in caplog.records if "tracking" in record.message] == [
        "tracking.to: mlflow failed"
    ]
    assert scalars(tmp_path) == {"repair/loss": {1: 0.5, 2: 0.25}}


def test_a_tracker_that_is_not_installed_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tracking\.to: wandb is not installed"):
        check_installed(TrackingSettings(to=("tensorboard", "wandb")))
