"""Every file of ds_configs/ under real ranks: forward sees an edit of shards, and training, stopped or not, gives the same weights.

Persistent parameters, hpZ and offloading keep further copies of a parameter, each of which an edit could miss.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig

from sani_dist.corpus.rows import PackedRows
from sani_dist.engine.zero3 import read_ds_config
from sani_dist.errors import InputError
from sani_dist.files import file_sha256

from . import plain
from .ranks import ROOT, run_ranks

FOLDER = ROOT / "ds_configs"
FILES = sorted(path.name for path in FOLDER.glob("*.json"))
NVME = "zero3_nvme_offload.json"
REPAIR = {
    "epochs": 2, "batch_rows": 6, "micro_rows": 2, "retain": 0.5, "learning_rate": 1e-3, "warmup": 0, "seed": 11, "checkpoint_every": 1,
}  # fmt: skip
ERASE = {"layers": 2, "fraction": 0.3, "select": "random", "reset": "zero", "seed": 3}


@pytest.fixture(scope="module")
def two_ranks(wide_vocabulary: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left under each file that every machine can run."""
    folder = tmp_path_factory.mktemp("two")
    files = {name: str(FOLDER / name) for name in FILES if name != NVME}
    run_ranks(
        2, "under_ds_configs", folder,
        files=files, model=str(wide_vocabulary), tokens=str(tokens), repair=REPAIR, erase=ERASE,
    )  # fmt: skip
    return folder


def weights(folder: Path, part: str) -> str:
    return file_sha256(folder / part / "model.safetensors")


def assert_edit_is_seen(folder: Path, tokens: Path) -> None:
    rows = PackedRows(tokens / "repair.arrow")
    reference = plain.logprobs(plain.load(folder / "erased"), rows)
    difference = np.nanmax(np.abs(np.load(folder / "scores.npz")["after"] - reference))
    assert difference < 0.15  # bf16


@pytest.mark.parametrize("name", [name for name in FILES if name != NVME])
def test_forward_sees_an_edit_and_training_goes_on_from_it(
    two_ranks: Path, wide_vocabulary: Path, tokens: Path, name: str
) -> None:
    folder, default = two_ranks / name, two_ranks / "zero3.json"
    before = plain.logprobs(plain.load(wide_vocabulary), PackedRows(tokens / "repair.arrow"))
    erased = plain.logprobs(plain.load(folder / "erased"), PackedRows(tokens / "repair.arrow"))
    assert np.nanmax(np.abs(before - erased)) > 0.5  # an edit that is missed would show
    assert_edit_is_seen(folder, tokens)
    assert weights(folder, "undisturbed") == weights(folder, "resumed") != weights(folder, "erased")
    losses = json.loads((folder / "losses.json").read_text())
    assert len(losses) == 3
    assert losses[1] == losses[2]
    # What a file changes is where things lie, never a bit.
    assert losses == json.loads((default / "losses.json").read_text())
    assert weights(folder, "erased") == weights(default, "erased")
    assert weights(folder, "undisturbed") == weights(default, "undisturbed")


@pytest.mark.slow
def test_two_nodes_of_two_ranks_each(
    wide_vocabulary: Path, tokens: Path, changed: Callable[..., str], tmp_path: Path
) -> None:
    """hpZ with more than one group: forward gathers within a node."""
    files = {"hpz": changed("zero3_nodes.json", zero_hpz_partition_size=2), "zero3": str(FOLDER / "zero3.json")}
    run_ranks(
        4, "under_ds_configs", tmp_path,
        files=files, model=str(wide_vocabulary), tokens=str(tokens), repair=REPAIR, erase=ERASE,
    )  # fmt: skip
    assert_edit_is_seen(tmp_path / "hpz", tokens)
    for part in ("erased", "undisturbed", "resumed"):
        assert weights(tmp_path / "hpz", part) == weights(tmp_path / "zero3", part)


@pytest.mark.slow
def test_masters_and_moments_on_nvme(
    wide_vocabulary: Path, tokens: Path, changed: Callable[..., str], two_ranks: Path, tmp_path: Path
) -> None:
    """DeepSpeed compiles its asynchronous I/O for it, which needs libaio."""
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        pytest.skip("needs libaio (libaio-dev)")
    disk = tmp_path / "nvme"
    disk.mkdir()
    file = changed(NVME, offload_optimizer={"device": "nvme", "nvme_path": str(disk), "pin_memory": True})
    run_ranks(
        2, "under_ds_configs", tmp_path,
        files={"nvme": file}, model=str(wide_vocabulary), tokens=str(tokens), repair=REPAIR, erase=ERASE,
    )  # fmt: skip
    stored = sum(path.stat().st_size for path in disk.rglob("*.swp"))
    assert stored > 12 * 2 * 9973 * 27  # masters and two moments of the embeddings alone
    assert_edit_is_seen(tmp_path / "nvme", tokens)
    for part in ("erased", "undisturbed", "resumed"):
        assert weights(tmp_path / "nvme", part) == weights(two_ranks / "zero3.json", part)


@pytest.mark.parametrize("name", FILES)
def test_deepspeed_knows_every_key(name: str) -> None:
    """Its models refuse keys they do not know, and keep the ones they do."""
    config = read_ds_config(FOLDER / name, torch.bfloat16)
    read = DeepSpeedConfig(config).zero_config.model_dump(by_alias=True, mode="json")
    for key, value in config["zero_optimization"].items():
        kept = read[key]
        assert (kept if not isinstance(value, dict) else {k: kept[k] for k in value}) == value, key


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_quantized_weights": True}, "forward would see rounded weights"),
        ({"offload_param": {"device": "nvme", "nvme_path": "/nvme"}}, "shards have to be in memory"),
    ],
)
def test_what_would_audit_or_edit_another_model_is_refused(
    changed: Callable[..., str], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"cluster.ds_config: .*{message}") as error:
        read_ds_config(Path(changed("zero3.json", **values)), torch.bfloat16)
    assert "\n" not in str(error.value)
