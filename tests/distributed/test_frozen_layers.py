"""Training the last layer on hidden states that were computed once, against running the layers below in every step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sani_dist
from sani_dist.api import REPAIR_STAGES
from sani_dist.config import Config, CorpusSettings
from sani_dist.corpus.prepare import prepare
from sani_dist.corpus.rows import PackedRows
from sani_dist.errors import RunError
from sani_dist.purge import purge
from sani_dist.run import Run

from ..watching import at_step, terminate_self
from . import plain
from .ranks import run_ranks

# Micro-batches of two rows, the last of them empty on one of two ranks; general text that not every step has in full.
REPAIR = {
    "epochs": 3, "batch_rows": 5, "micro_rows": 2, "retain": 0.4, "learning_rate": 1e-3, "warmup": 0, "clip": 1e9, "seed": 11,
    "checkpoint_every": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokens(corpus: dict[str, str], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk-tokens")
    settings = CorpusSettings.model_validate(
        {
            "source": corpus["notes"], "general": corpus["general"], "spans": "spans", "detect": [{"name": "annotations"}],
            "row_length": 96,
        }
    )  # fmt: skip
    prepare(settings, tiny_tokenizer, folder, b"k" * 32)
    return folder / "tokens" / "epoch-000"


Train = Callable[..., None]


@pytest.fixture(scope="module")
def train(tokens: Path, gpt2_folder: Path, threshold_0: Path) -> Train:
    """Train the last layer of GPT-2 in fp32, in `folder / name` for each case."""

    def on_ranks(workers: int, folder: Path, *cases: dict[str, Any]) -> None:
        run_ranks(
            workers, "train_the_last_layer", folder, cases=[{"kept": True, "stop": None, "checkpointing": False, **case} for case in cases],
            model=str(gpt2_folder), ds_config=str(threshold_0), tokens=str(tokens), repair=REPAIR,
        )  # fmt: skip

    return on_ranks


@pytest.fixture(scope="module")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On two ranks: kept; with the trunk in every step; with layers run again in backward; stopped in the second epoch."""
    folder = tmp_path_factory.mktemp("trunk")
    again = {"name": "again", "checkpointing": True}
    train(2, folder, {"name": "kept"}, {"name": "run", "kept": False}, again, {"name": "stopped", "stop": 6})
    return folder


@pytest.fixture(scope="module")
def kept(trained: Path) -> Path:
    return trained / "kept"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "exported" / "model.safetensors")


def test_only_the_last_layer_changes(kept: Path, gpt2_folder: Path) -> None:
    source = dict(plain.load(gpt2_folder).state_dict())
    changed = {name for name, values in weights(kept).items() if not torch.equal(values, source[name])}
    assert changed == {name for name in source if name.startswith("transformer.h.1.")}


@pytest.mark.parametrize("way", ["run", "again"])
def test_the_weights_are_those_of_running_layers_once_more(trained: Path, kept: Path, way: str) -> None:
    """Of the trunk in every step; of the trained layers in backward."""
    for name, values in weights(trained / way).items():
        torch.testing.assert_close(weights(kept)[name], values, rtol=1e-4, atol=1e-5)


def test_the_whole_model_runs_forward_afterwards(kept: Path, tokens: Path) -> None:
    model = plain.load(kept / "exported")
    expected = plain.logprobs(model, PackedRows(tokens / "repair.arrow"))
    np.testing.assert_allclose(np.load(kept / "scores.npy"), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_resumed_run_reads_the_states_of_the_stopped_one(
    train: Train, trained: Path, kept: Path, tmp_path: Path, workers: int
) -> None:
    """On as many ranks it ends with the same bits; on more, with the same scores, as near as sums in another order are."""
    folder = shutil.copytree(trained / "stopped", tmp_path / "resumed")
    written = {path.name: path.stat().st_mtime_ns for path in (folder / "trunk").iterdir()}
    train(workers, tmp_path, {"name": "resumed"})
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "trunk").iterdir()} == written
    if workers == 2:
        for name, values in weights(kept).items():
            assert torch.equal(weights(folder)[name], values), name
    np.testing.assert_allclose(np.load(folder / "scores.npy"), np.load(kept / "scores.npy"), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_whole_run_keeps_the_states_until_it_has_trained(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch, resumed, finished; nobody else reads them, and `purge` removes them."""
    config = make_config(
        repair={"trainable": {"last": 1}, "checkpoint_every": 100, "objectives": {"kl": 0.3, "kl_top": 5}},
        erase={"layers": 1, "select": "random"},
    )
    with pytest.raises(RunError, match="resume"):
        sani_dist.sanitize(config, tmp_path / "run", stages=REPAIR_STAGES, on_event=at_step(9, terminate_self))
    run, copy = Run.open(tmp_path / "run"), Run.open(shutil.copytree(tmp_path / "run", tmp_path / "copy"))
    folders = [run.path("repair", name) for name in ("trunk", "teacher")]
    written = {}
    for folder in folders:
        written |= {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert sorted(path.name for path in folder.iterdir()) == [
            "rank-00000.bin",
            "rank-00001.bin",
            f"{folder.name}.json",
        ]
    assert {"repair/trunk", "repair/teacher"} <= set(purge(copy.folder))
    assert not any(copy.path("repair", folder.name).exists() for folder in folders)

    seen = []

    def look(event: dict[str, Any]) -> None:
        if event["stage"] == "repair" and not seen:
            seen.append({path: path.stat().st_mtime_ns for path in written})

    sani_dist.resume(run.folder, on_event=look)
    assert seen == [written]
    assert not any(folder.exists() for folder in folders)
    source = load_file(config.model.path / "model.safetensors")
    exported = load_file(run.path("model", "model.safetensors"))
    changed = {name for name, values in exported.items() if not torch.equal(values, source[name].bfloat16())}
    assert changed == {name for name in source if name.startswith("model.layers.2.")}


def test_each_row_is_kept_once(kept: Path, tokens: Path) -> None:
    document = json.loads((kept / "trunk" / "trunk.json").read_text())
    sizes = [(kept / "trunk" / name).stat().st_size for name in document["files"]]
    rows = PackedRows(tokens / "repair.arrow")
    general = len(PackedRows(tokens / "general_train.arrow"))
    size = rows.row_length * 33 * 4
    assert len(sizes) == 2
    assert len(rows) * size <= sum(sizes) <= (len(rows) + general) * size
    assert 0 <= sizes[0] - sizes[1] <= size
