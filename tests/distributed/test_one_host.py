"""No two hosts write one file, and what every rank wrote is on disk before the folder gets its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sani_dist.engine.one_host import HostFiles
from sani_dist.engine.safetensors_files import plan_files
from sani_dist.engine.shards import LiveShard, Shard

from .ranks import run_ranks

RANKS, HOSTS = 4, 2


@pytest.fixture(scope="module")
def folder(llama_folder: Path, threshold_0: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four ranks on two hosts left."""
    found = tmp_path_factory.mktemp("hosts") / "run"
    run_ranks(
        RANKS, "hosts_work.save_and_export", found, hosts=HOSTS, model=str(llama_folder), ds_config=str(threshold_0)
    )
    return found


def test_a_file_is_written_by_the_ranks_of_one_host(folder: Path) -> None:
    hosts_of: dict[str, set[int]] = {}
    for rank in range(RANKS):
        for name in json.loads((folder.parent / f"run-written-{rank}.json").read_text()):
            hosts_of.setdefault(name, set()).add(rank // (RANKS // HOSTS))
    weights = [name for name in hosts_of if Path(name).parent.name == ".tmp-model" and name.endswith(".safetensors")]
    assert len(weights) > 2
    assert {frozenset(hosts_of[name]) for name in weights} == {frozenset({0}), frozenset({1})}, "both hosts write"
    assert {name: hosts for name, hosts in hosts_of.items() if len(hosts) > 1} == {}


def test_the_export_is_whole_and_so_is_the_checkpoint(folder: Path, llama_folder: Path) -> None:
    """The masters of the checkpoint, put together, are what was exported, in fp32."""
    exported = {k: v for file in (folder / "model").glob("*.safetensors") for k, v in load_file(file).items()}
    source = load_file(llama_folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in exported.items()} == {n: t.shape for n, t in source.items()}
    parts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for file in (folder / "checkpoints" / "step-000001").glob("rank-*.safetensors"):
        for key, tensor in load_file(file).items():
            kind, name, start = key.split("|")
            if kind == "master":
                parts.setdefault(name, []).append((int(start), tensor))
    for name, tensor in exported.items():
        whole = torch.cat([values for _, values in sorted(parts[name], key=lambda part: part[0])])
        assert torch.equal(whole, tensor.flatten()), name
        assert not torch.equal(tensor, source[name]), "a step was taken"


def test_what_is_not_on_disk_as_it_was_written_is_seen(tmp_path: Path) -> None:
    values = torch.arange(1000, dtype=torch.float32)
    values[7] = torch.nan  # equal to itself as bytes alone
    live = [LiveShard(Shard("weight", (10, 100), 0, 1000, torch.bfloat16), values)]
    (tmp_path / "model").mkdir()
    files = plan_files([("weight", (10, 100), torch.bfloat16)], tmp_path / "model")
    writing = HostFiles(files, live, tmp_path / "model")
    writing.create()
    writing.write()
    writing.verify()
    path = tmp_path / "model" / files[0].name
    whole = bytearray(path.read_bytes())
    whole[-500] ^= 1
    path.write_bytes(whole)
    with pytest.raises(OSError, match="does not hold what was written"):
        writing.verify()
    path.write_bytes(whole[:-500])
    with pytest.raises(OSError, match="does not hold what was written"):
        writing.verify()
