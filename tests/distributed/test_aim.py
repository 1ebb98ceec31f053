"""Whole runs that begin at the base, or draw sensitive tokens to a reference, on real ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sani_dist
from sani_dist import api
from sani_dist.api import REPAIR_STAGES
from sani_dist.config import Config
from sani_dist.errors import RunError
from sani_dist.purge import purge
from sani_dist.run import Run

from .. import tiny
from ..watching import at_step, terminate_self

BEGIN = {"layers": 1, "select": "everything", "reset": "base"}
OBJECTIVES = {"aim": 1, "kl": 0.5, "kl_top": 7}


@pytest.fixture(scope="module")
def base(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.llama(len(tiny_tokenizer), seed=7), tiny_tokenizer, tmp_path_factory.mktemp("base"))


def losses(run: Run) -> list[float]:
    events = [json.loads(line) for line in run.path("metrics.jsonl").read_text().splitlines()]
    of_step = {event["done"]: event["loss"] for event in events if event["stage"] == "repair"}
    return [of_step[step] for step in sorted(of_step)]


def test_erased_to_the_base_and_not_repaired_it_is_the_base(
    make_config: Callable[..., Config], base: Path, tmp_path: Path
) -> None:
    config = make_config(model={"base": str(base), "dtype": "float32"}, erase=BEGIN, cluster={"workers": 1})
    run = sani_dist.sanitize(config, tmp_path / "run", stages=api.ERASE_STAGES)
    expected, found = (load_file(folder / "model.safetensors") for folder in (base, run.path("model")))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], values) for name, values in expected.items())


def goes_on(config: Config, folder: Path) -> Run:
    """A run that was stopped in repair and resumed: it reads what it had asked before, nothing of that is left, and `purge` removes it."""
    with pytest.raises(RunError, match="resume"):
        sani_dist.sanitize(config, folder / "run", stages=REPAIR_STAGES, on_event=at_step(3, terminate_self))
    run, copy = Run.open(folder / "run"), Run.open(shutil.copytree(folder / "run", folder / "copy"))
    folders = [run.path("repair", name) for name in ("teacher", "reference")]
    written = {path: path.stat().st_mtime_ns for kept in folders for path in kept.iterdir()}
    assert len(written) == 2 * 3
    assert {"repair/teacher", "repair/reference"} <= set(purge(copy.folder))
    seen = []

    def look(event: dict[str, Any]) -> None:
        if event["stage"] == "repair" and not seen:
            seen.append({path: path.stat().st_mtime_ns for path in written})

    sani_dist.resume(run.folder, on_event=look)
    assert seen == [written]
    assert not any(kept.exists() for kept in folders)
    return run


def test_a_run_that_begins_at_the_base_goes_on_where_it_was_stopped(
    make_config: Callable[..., Config], base: Path, tmp_path: Path
) -> None:
    repair = {"checkpoint_every": 100, "epochs": 1, "objectives": OBJECTIVES}
    run = goes_on(make_config(model={"base": str(base)}, erase=BEGIN, repair=repair), tmp_path)
    expected, found = (load_file(folder / "model.safetensors") for folder in (base, run.path("model")))
    assert not any(torch.equal(found[name].float(), values) for name, values in expected.items() if values.dim() > 1)


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["base", "others"])
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    make_config: Callable[..., Config], base: Path, tmp_path: Path, reference: str
) -> None:
    repair = {"checkpoint_every": 100, "epochs": 2, "objectives": {**OBJECTIVES, "reference": reference}}
    erase = BEGIN if reference == "base" else {"layers": 0}
    config = make_config(model={"base": str(base)}, erase=erase, repair=repair)
    run = goes_on(config, tmp_path)
    undisturbed = sani_dist.sanitize(config, tmp_path / "undisturbed", stages=REPAIR_STAGES)
    ended, expected = (load_file(r.path("model", "model.safetensors")) for r in (run, undisturbed))
    assert all(torch.equal(ended[name], values) for name, values in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["base", "others", "itself"])
def test_every_number_of_ranks_repairs_alike(
    make_config: Callable[..., Config], base: Path, tmp_path: Path, reference: str
) -> None:
    found = []
    for workers in (1, 2, 3):
        config = make_config(
            model={"base": str(base), "dtype": "float32"}, erase=BEGIN if reference == "base" else {"layers": 0},
            repair={"epochs": 2, "objectives": {**OBJECTIVES, "reference": reference, "surrogate": "en_US"}},
            cluster={"workers": workers, "threads": 1},
        )  # fmt: skip
        found.append(losses(sani_dist.sanitize(config, tmp_path / str(workers), stages=REPAIR_STAGES)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-4)


@pytest.mark.slow
def test_an_adapter_is_drawn_to_the_model_without_it(
    make_config: Callable[..., Config], llama_folder: Path, tmp_path: Path
) -> None:
    """From a fresh adapter, whose first loss where identifiers stand is nothing: it is the base."""
    adapter = tiny.lora(llama_folder, tmp_path / "adapter", ["q_proj", "v_proj", "up_proj", "down_proj"])
    first = {}
    for name, objectives in (("aim", {"aim": 100}), ("mask", {})):
        config = make_config(
            model={"adapter": str(adapter), "dtype": "float32"},
            erase=BEGIN,
            repair={"epochs": 1, "objectives": objectives},
        )
        run = sani_dist.sanitize(config, tmp_path / name, stages=REPAIR_STAGES)
        first[name] = losses(run)[0]
        exported = load_file(run.path("model", "adapter_model.safetensors"))
        source = load_file(adapter / "adapter_model.safetensors")
        assert exported.keys() == source.keys()
        assert not any(torch.equal(exported[tensor], values) for tensor, values in source.items())
    assert first["aim"] == pytest.approx(first["mask"], abs=1e-3)
