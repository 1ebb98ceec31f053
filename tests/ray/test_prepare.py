"""Text prepared by actors of Ray Data: the files of this process, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from transformers import PreTrainedTokenizerFast

from examples.clinic.notes import write_notes
from sani_dist import orchestrate
from sani_dist.config import Config, CorpusSettings, RepairSettings
from sani_dist.config_file import config_to_mapping, load_config
from sani_dist.corpus import prepare, tables
from sani_dist.corpus.executor import Executor, on_ray
from sani_dist.errors import InputError, RunError
from sani_dist.files import file_sha256
from sani_dist.metrics import Metrics
from sani_dist.orchestrate.connection import connected
from sani_dist.run import Run

from .started import finished, sani_dist_run, started

ACTORS = 2


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    with connected(None, cpus=ACTORS, resources={}, object_store_bytes=orchestrate.PREPARE_STORE_BYTES) as own:
        assert own
        yield
    assert not ray.is_initialized()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven documents: so many that the actors have to take turns."""
    monkeypatch.setattr(tables, "_GROUP_ROWS", 7)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Corpus settings with all splits, in paths relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    write_notes(Path("notes.jsonl"), 40, seed=3)
    write_notes(Path("control.jsonl"), 12, seed=3, start=40)
    write_notes(Path("heldout.jsonl"), 5, seed=3, start=52)
    general = [{"text": f"Page {i}: insulin is made since 1921, Straße {i % 3} and \u6771\u4eac."} for i in range(30)]
    Path("general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in general))
    Path("terms.txt").write_text("insulin\nblood pressure\n")
    files = {name: f"{name}.jsonl" for name in ("control", "heldout", "general")}
    detect = [{"name": "annotations"}, {"name": "terms", "path": "terms.txt"}, {"name": "rare_terms", "subjects": 3}]
    return {
        "source": "notes.jsonl",
        **files,
        "subject": "patient",
        "spans": "spans",
        "detect": detect,
        "row_length": 64,
    }


def files_of(
    settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast, run: Path, executor: Executor, **repair: Any
) -> dict[str, str]:
    """Hash of each file that preparing writes."""
    chosen = RepairSettings.model_validate(repair)
    prepare(CorpusSettings.model_validate(settings), tokenizer, run, b"k" * 32, repair=chosen, executor=executor)
    return {str(path.relative_to(run)): file_sha256(path) for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("two_cpus", "small_batches")
@pytest.mark.parametrize("names", [(), pytest.param(("presidio", "pattern"), marks=pytest.mark.slow)])
def test_actors_give_the_files_of_this_process(
    notes: dict[str, Any], tiny_tokenizer: PreTrainedTokenizerFast, names: tuple[str, ...]
) -> None:
    """Annotations, terms, rare terms and surrogates, over all splits; and Presidio's language model, for its start takes long."""
    if names:
        pattern = {"kind": "RECORD_NUMBER", "regex": r"MRN (\S+)"}
        notes["detect"].append({"name": "presidio", "patterns": [pattern]})
    repair = {"epochs": 2, "objectives": {"surrogate": "en_US"}}
    here = files_of(notes, tiny_tokenizer, Path("here"), map, **repair)
    assert {"corpus/labelled.parquet", "tokens/epoch-000/control.arrow", "tokens/epoch-002/repair.arrow"} <= set(here)
    summary = json.loads(Path("here/corpus/summary.json").read_text())
    assert set(summary["detectors"]["repair"]) >= {"annotations", "terms", "rare_terms", "closure", *names}
    assert summary["surrogates"]["replaced"]
    assert files_of(notes, tiny_tokenizer, Path("there"), on_ray(ACTORS, {}), **repair) == here


@pytest.mark.usefixtures("two_cpus")
def test_more_actors_than_the_cluster_has_cpus_is_one_line(make_config, tmp_path: Path) -> None:
    config: Config = make_config(cluster={"prepare_workers": ACTORS + 1})
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(InputError, match=r"^cluster.prepare_workers: the cluster has fewer CPUs$"):
        orchestrate.prepare(run, Metrics(run.path("metrics.jsonl")))


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_an_actor_that_fails_is_one_line_without_values(tmp_path: Path) -> None:
    def fail(number: int) -> int:
        raise ValueError(f"Zyxwort {tmp_path / 'none'}")

    with pytest.raises(RunError, match=r"^Ray Data failed to prepare the text \(") as error:
        list(on_ray(1, {})(fail, range(3)))
    assert "Zyxwort" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus", "small_batches")
def test_a_killed_actor_changes_no_byte(notes, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    here = files_of(notes, tiny_tokenizer, Path("here"), map)
    killed: list[psutil.Process] = []

    def executor(function, numbers):
        for number, result in enumerate(on_ray(ACTORS, {})(function, numbers)):
            if number == 1:
                actors = [p for p in psutil.process_iter(["name"]) if "_Actor" in p.info["name"]]
                killed.append(actors[0])
                actors[0].kill()
            yield result

    assert files_of(notes, tiny_tokenizer, Path("there"), executor) == here
    assert len(killed) == 3  # in finding, closing and encoding


@pytest.mark.slow
def test_a_run_whose_text_actors_prepare(settings_file: Path, tmp_path: Path) -> None:
    """The command starts a Ray of its own."""
    log, folder = tmp_path / "log", tmp_path / "run"
    command = sani_dist_run(settings_file, folder, "cluster.launcher=local", "cluster.prepare_workers=2")
    printed = finished(started([*command, "--prepare-only"], log), log)
    assert "Find sensitive spans: 201 documents" in printed
    run = Run.open(folder)
    assert run.is_done("prepare")
    here = Run.create(tmp_path / "here", load_config(settings_file))
    (here.folder / "key").write_bytes(run.key)
    orchestrate.prepare(here, Metrics(here.path("metrics.jsonl")))
    outputs = [json.loads(r.path("done", "prepare.json").read_text())["outputs"] for r in (run, here)]
    assert outputs[0] == outputs[1]
    assert config_to_mapping(run.config)["cluster"]["prepare_workers"] == 2
