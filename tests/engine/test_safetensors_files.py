"""Byte ranges of safetensors files, against the safetensors library."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sani_dist.engine import safetensors_files
from sani_dist.engine.export import export
from sani_dist.engine.safetensors_files import Checkpoint, create_files, plan_files, read_header, write_range
from sani_dist.engine.shards import LiveShard, Shard, partition
from sani_dist.errors import InputError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8)


def random_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "first.weight": (7, 13),
        "first.bias": (13,),
        "scalar": (),
        "empty": (0, 4),
        "cube": (3, 5, 2),
        "row": (1, 97),
    }
    dtypes = dict(zip(shapes, DTYPES, strict=True))
    return {name: (torch.randn(shape, generator=draw) * 50).abs().to(dtypes[name]) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    save_file(random_tensors(), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture
def checkpoint_copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(file: Path, change: dict[str, object] | str) -> None:
    """Replace the header of a safetensors file, or change entries of it."""
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    text = change if isinstance(change, str) else json.dumps({**json.loads(content[8 : 8 + size]), **change})
    header = text.encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


# Reading


@given(data=st.data(), dtype=st.sampled_from((torch.float32, torch.bfloat16, torch.float16)), buffer=st.integers(1, 64))
@settings(max_examples=200, deadline=None)
def test_any_range_is_what_the_library_reads(
    folder: Path, data: st.DataObject, dtype: torch.dtype, buffer: int
) -> None:
    stored = load_file(folder / "model.safetensors")
    name = data.draw(st.sampled_from(sorted(stored)))
    whole = stored[name].flatten()
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    out = torch.full((stop - start,), -1, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_files, "BUFFER_BYTES", buffer)  # many small reads, some of less than one element
        Checkpoint(folder).read_into(name, start, stop, out)
    assert torch.equal(out, whole[start:stop].to(dtype))


def test_a_sharded_checkpoint_reads_as_one(gpt2_folder: Path) -> None:
    files = sorted(gpt2_folder.glob("*.safetensors"))
    assert len(files) > 2
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    checkpoint = Checkpoint(gpt2_folder)
    assert checkpoint.tensors.keys() == stored.keys()
    for name, tensor in stored.items():
        out = torch.empty(tensor.numel())
        checkpoint.read_into(name, 0, tensor.numel(), out)
        assert torch.equal(out.view(tensor.shape), tensor)


def test_the_hash_depends_on_every_byte(checkpoint_copy: Path, folder: Path) -> None:
    file = checkpoint_copy / "model.safetensors"
    assert Checkpoint(checkpoint_copy).sha256() == Checkpoint(folder).sha256()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Checkpoint(checkpoint_copy).sha256() != Checkpoint(folder).sha256()


# Bad files: one line that names the file


def refused(folder: Path, match: str) -> None:
    with pytest.raises(InputError, match=match) as error:
        Checkpoint(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated(checkpoint_copy: Path, share: float) -> None:
    file = checkpoint_copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused(checkpoint_copy, "copy or export it again")


def test_longer_than_its_header_says(checkpoint_copy: Path) -> None:
    with (checkpoint_copy / "model.safetensors").open("ab") as stream:
        stream.write(b"\0")
    refused(checkpoint_copy, "its header says")


@pytest.mark.parametrize(
    "change",
    [
        "{not json", "[1, 2]", '"text"', '{"a": 3}', '{"a": {"dtype": "F32", "shape": [2]}}',
        {"first.bias": {"dtype": "F32", "shape": [14], "data_offsets": [0, 52]}},
        {"first.bias": {"dtype": "F32", "shape": [13], "data_offsets": [-52, 0]}},
        {"first.bias": {"dtype": "F32", "shape": [-1, -13], "data_offsets": [0, 52]}},
        {"first.bias": {"dtype": "F32", "shape": "13", "data_offsets": [0, 52]}},
    ],
)  # fmt: skip
def test_corrupt_header(checkpoint_copy: Path, change: dict[str, object] | str) -> None:
    rewrite(checkpoint_copy / "model.safetensors", change)
    refused(checkpoint_copy, "copy or export it again")


def test_a_format_that_is_no_plain_one(checkpoint_copy: Path) -> None:
    rewrite(
        checkpoint_copy / "model.safetensors", {"first.bias": {"dtype": "Q4", "shape": [13], "data_offsets": [0, 52]}}
    )
    refused(checkpoint_copy, r"first\.bias is stored as Q4, a quantised format")


def test_header_length_beyond_the_file(checkpoint_copy: Path) -> None:
    file = checkpoint_copy / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    refused(checkpoint_copy, "not a whole safetensors file")


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no folder")
    refused(tmp_path, r"no model.safetensors and no model.safetensors.index.json")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "only pickled weights")


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}', '{"weight_map": 3}', "\udcff"])
def test_broken_index(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, errors="surrogateescape")
    refused(tmp_path, "not a safetensors index")


def test_index_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    refused(tmp_path, "model-00001-of-00002.safetensors: cannot be read")


# Writing


@given(world_size=st.integers(1, 9), file_bytes=st.sampled_from([1, 200, 10**6]), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_what_ranks_write_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, world_size: int, file_bytes: int, seed: int
) -> None:
    folder, tensors = tmp_path_factory.mktemp("written"), random_tensors(seed)
    files = plan_files([(n, tuple(t.shape), t.dtype) for n, t in tensors.items()], folder, file_bytes)
    create_files(files, folder)
    places = {tensor.name: tensor for file in files for tensor in file.tensors}
    for rank in reversed(range(world_size)):
        for name, tensor in tensors.items():
            start, stop = partition(tensor.numel(), world_size, rank)
            write_range(places[name], start, tensor.flatten()[start:stop])
    written = {name: tensor for file in files for name, tensor in load_file(folder / file.name).items()}
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].dtype == tensor.dtype
        assert torch.equal(written[name], tensor)
    assert all((folder / file.name).stat().st_size == file.total_bytes for file in files)
    assert [t for file in files for t in read_header(folder / file.name)] == [t for file in files for t in file.tensors]


def test_large_tensors_get_files_of_their_own(tmp_path: Path) -> None:
    files = plan_files([(f"t{i}", (10, 10), torch.float32) for i in range(5)], tmp_path, file_bytes=900)
    assert [file.name for file in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [len(file.tensors) for file in files] == [2, 2, 1]
    assert [f.name for f in plan_files([("t", (1000,), torch.float32)], tmp_path, 8)] == ["model.safetensors"]


# A whole folder


def whole_shards(tensors: dict[str, torch.Tensor]) -> list[LiveShard]:
    return [LiveShard(Shard(n, tuple(t.shape), 0, t.numel(), t.dtype), t.flatten()) for n, t in tensors.items()]


def test_export_replaces_an_older_model_and_copies_by_an_allow_list(llama_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(llama_folder, source)
    for name in ("training_args.bin", "optimizer.pt", "README.md", "trainer_state.json"):
        (source / name).write_text("left by training")
    (source / "chat_template.jinja").write_text("{{ messages }}")
    target = tmp_path / "model"
    target.mkdir()
    (target / "model-00001-of-00007.safetensors").write_text("old")
    tensors = {"a": torch.randn(5, 3).to(torch.bfloat16)}
    hashes = export(whole_shards(tensors), source, target, dtype=torch.bfloat16)
    names = {path.name for path in target.iterdir()}
    assert names == set(hashes) == {
        "model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja",
    }  # fmt: skip
    assert torch.equal(load_file(target / "model.safetensors")["a"], tensors["a"])
    assert json.loads((target / "config.json").read_text())["dtype"] == "bfloat16"
    assert not (tmp_path / ".tmp-model").exists()


def test_export_that_cannot_write_leaves_the_older_model(llama_folder: Path, tmp_path: Path) -> None:
    """The system refuses files over 1 MB, as it refuses all on a full disk; tests/distributed fills a real one."""
    target = tmp_path / "model"
    script = f"""
import resource, sys, torch
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from sani_dist.engine.export import export
from sani_dist.errors import RunError
from tests.engine.test_safetensors_files import whole_shards
source, target = Path({str(llama_folder)!r}), Path({str(target)!r})
export(whole_shards({{"a": torch.ones(5)}}), source, target)
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
try:
    export(whole_shards({{"a": torch.zeros(10**6)}}), source, target)
except RunError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "the model was not written" in done.stdout, done.stderr
    assert "free disk space" in done.stdout
    assert torch.equal(load_file(target / "model.safetensors")["a"], torch.ones(5))
    assert not (tmp_path / ".tmp-model").exists()
