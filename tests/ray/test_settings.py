"""Settings of a cluster: refused in one line, or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sani_dist import orchestrate
from sani_dist.config import ClusterSettings, Config
from sani_dist.config_file import cluster_changes, config_from_mapping, config_to_mapping, load_config
from sani_dist.errors import InputError
from sani_dist.orchestrate import connection
from sani_dist.report.redact import redacted
from sani_dist.run import Run

from .started import finished, sani_dist_run, started


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"address": "ray://head:10001"}, "cluster: .*ray_submit"),
        ({"resources": {"GPU": 1}}, "cluster: .*gpus_per_worker"),
        ({"resources": {"fast": 0}}, r"cluster.resources.\(a key\): "),
        ({"placement": "ANYWHERE"}, "cluster.placement: .*SPREAD"),
        ({"max_failures": -1}, "cluster.max_failures: "),
        ({"prepare_workers": -1}, "cluster.prepare_workers: "),
    ],
)
def test_what_ray_cannot_keep_is_refused(settings_file: Path, setting: dict[str, Any], message: str) -> None:
    mapping = config_to_mapping(load_config(settings_file))
    with pytest.raises(InputError, match=message) as error:
        config_from_mapping({**mapping, "cluster": setting})
    assert "ANYWHERE" not in str(error.value)


def test_without_ray_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ray\[default,train\]=="):
        orchestrate.check(ClusterSettings(launcher="ray"))
    with pytest.raises(InputError, match="ray is not installed"):
        orchestrate.check(ClusterSettings(prepare_workers=2))
    orchestrate.check(ClusterSettings())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(
            "cluster.gpus_per_worker=64",
            "cluster.gpus_per_worker: this machine has fewer GPUs than the workers ask for",
            marks=pytest.mark.slow,
        ),
        ("cluster.address=127.0.0.1:1", "cluster.address: nothing answers at 127.0.0.1:1"),
    ],
)
def test_a_ray_that_cannot_be_is_one_line(settings_file: Path, tmp_path: Path, override: str, message: str) -> None:
    log = tmp_path / "log"
    printed = finished(started(sani_dist_run(settings_file, tmp_path / "run", override), log), log, code=2)
    assert printed.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("record", "variables", "message"),
    [
        pytest.param(None, {}, "no Ray cluster takes us in at auto", marks=pytest.mark.slow),
        pytest.param("127.0.0.1:1", {}, "nothing answers at 127.0.0.1:1", marks=pytest.mark.slow),
        ("127.0.0.1:1", {"RAY_ADDRESS": "127.0.0.1:2"}, "nothing answers at 127.0.0.1:2"),
    ],
    ids=["none", "killed", "RAY_ADDRESS goes before"],
)
def test_no_cluster_to_be_found_is_one_line(
    settings_file: Path, tmp_path: Path, record: str | None, variables: dict[str, str], message: str
) -> None:
    """A cluster that was killed leaves its address behind: Ray would try it for five minutes."""
    if record is not None:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(record)
    log = tmp_path / "log"
    started_run = started(
        sani_dist_run(settings_file, tmp_path / "run", "cluster.address=auto"),
        log,
        RAY_TMPDIR=str(tmp_path),
        **variables,
    )
    printed = finished(started_run, log, code=2)
    assert printed.splitlines()[-1].startswith(f"error: cluster.address: {message}")
    assert "Traceback" not in printed


def test_a_begun_run_takes_cluster_settings_and_no_others(settings_file: Path, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_config(settings_file))
    before = run.inputs_sha256("repair")
    run.change_cluster(cluster_changes(["cluster.workers=1", "cluster.resources.fast=2"]))
    again = Run.open(tmp_path / "run").config
    assert (again.cluster.workers, again.cluster.resources, again.cluster.threads) == (1, {"fast": 2.0}, 1)
    assert run.inputs_sha256("repair") == before
    for override in ("repair.epochs=1", "cluster=3"):
        with pytest.raises(InputError, match="only `cluster` settings can change"):
            cluster_changes([override])
    with pytest.raises(InputError, match=r"cluster\.workers: "):
        run.change_cluster({"workers": 0})
    assert Run.open(tmp_path / "run").config.cluster.workers == 1


def test_a_runtime_environment_is_not_shown(settings_file: Path) -> None:
    """It may hold a password."""
    config: Config = load_config(settings_file, ["cluster.runtime_env={env_vars: {TOKEN: secret}}"])
    assert "secret" not in str(redacted(config_to_mapping(config)))
