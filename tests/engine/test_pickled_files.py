"""Byte ranges of `.bin` files, and what is refused in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sani_dist.engine.safetensors_files import Checkpoint
from sani_dist.errors import InputError

TENSORS = {
    "a": torch.arange(35, dtype=torch.float32).view(5, 7),
    "b": torch.arange(11).to(torch.bfloat16),
    "tail of a larger one": torch.arange(100, dtype=torch.float16)[83:],
}


def test_any_range_of_any_tensor(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    checkpoint = Checkpoint(tmp_path, allow_pickle=True)
    assert {n: (t.shape, t.dtype) for n, t in checkpoint.tensors.items()} == {
        n: (tuple(t.shape), t.dtype) for n, t in TENSORS.items()
    }
    for name, tensor in TENSORS.items():
        for start, stop in ((0, tensor.numel()), (3, 8), (tensor.numel() - 1, tensor.numel())):
            out = torch.empty(stop - start, dtype=tensor.dtype)
            checkpoint.read_into(name, start, stop, out)
            assert torch.equal(out, tensor.flatten()[start:stop])


def test_files_of_an_index(tmp_path: Path) -> None:
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in names.items():
        torch.save({name: TENSORS[name]}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    checkpoint = Checkpoint(tmp_path, allow_pickle=True)
    assert {name: tensor.file.name for name, tensor in checkpoint.tensors.items()} == names
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(InputError, match="not an index of weight files"):
        Checkpoint(tmp_path, allow_pickle=True)


class _Code:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({**TENSORS, "code": _Code(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model.bin: not a file of tensors alone"):
        Checkpoint(tmp_path, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["transposed", "number", "before 1.6", "cut", "empty", "text"])
def test_what_cannot_be_read_as_ranges_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pytorch_model.bin"
    if content == "transposed":
        torch.save({"a": TENSORS["a"].t()}, file)
    elif content == "number":
        torch.save({"a": 3}, file)
    elif content == "before 1.6":
        torch.save(TENSORS, file, _use_new_zipfile_serialization=False)
    elif content == "cut":
        torch.save(TENSORS, file)
        file.write_bytes(file.read_bytes()[:-200])
    else:
        file.write_bytes({"empty": b"", "text": b"not weights"}[content])
    with pytest.raises(InputError, match=r"pytorch_model.bin: ") as error:
        Checkpoint(tmp_path, allow_pickle=True)
    assert "\n" not in str(error.value)


def test_safetensors_are_taken_where_both_are(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((llama_folder / "model.safetensors").read_bytes())
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    assert [file.name for file in Checkpoint(tmp_path, allow_pickle=True).files] == ["model.safetensors"]
