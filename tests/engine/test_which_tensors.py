"""Which files, and which tensor of them, are the model's: those that plain `from_pretrained` reads, or none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sani_dist.engine.layout import check_complete, find_layout
from sani_dist.engine.safetensors_files import INDEX, PICKLED, SINGLE, Checkpoint
from sani_dist.engine.zero3 import build_empty, read_model_config
from sani_dist.errors import InputError

from .. import tiny

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def indexed(folder: Path, weight_map: dict[str, str], **files: dict[str, torch.Tensor]) -> Path:
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refused(folder: Path, match: str, allow_pickle: bool = False) -> None:
    with pytest.raises(InputError, match=match) as error:
        Checkpoint(folder, allow_pickle)
    assert "\n" not in str(error.value)


def test_one_file_is_taken_before_an_index(tmp_path: Path) -> None:
    folder = indexed(tmp_path, {"a": "one.safetensors"}, one={"a": TENSORS["a"] + 1})
    save_file(TENSORS, folder / SINGLE)
    assert [file.name for file in Checkpoint(folder).files] == [SINGLE]


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("name", ["weights.bin", "weights", "weights.pt", "weights.safetensors.bin"])
def test_an_index_of_safetensors_names_nothing_else(tmp_path: Path, name: str, allow_pickle: bool) -> None:
    torch.save({"a": _Code(tmp_path / "ran")}, tmp_path / name)
    refused(indexed(tmp_path, {"a": name}), "names a file that is not .safetensors", allow_pickle)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", ["absolute", "up", "link", "folder link"])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, way: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "model"
    outside.mkdir()
    folder.mkdir()
    save_file(TENSORS, outside / "one.safetensors")
    name = {"absolute": str(outside / "one.safetensors"), "up": "../outside/one.safetensors"}.get(
        way, "one.safetensors"
    )
    if way == "link":
        (folder / name).symlink_to(outside / "one.safetensors")
    elif way == "folder link":
        (folder / "inner").symlink_to(outside)
        name = "inner/one.safetensors"
    refused(indexed(folder, {"a": name, "b": name}), "names a file outside of the model's folder")


def test_the_hub_s_cache_is_a_folder_of_links(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    folder.mkdir(parents=True)
    save_file(TENSORS, blobs / "cafe")
    (folder / "one.safetensors").symlink_to("../../blobs/cafe")
    assert set(Checkpoint(indexed(folder, dict.fromkeys(TENSORS, "one.safetensors"))).tensors) == set(TENSORS)


@pytest.mark.parametrize("name", [SINGLE, INDEX, PICKLED, "one.safetensors"])
def test_a_pipe_is_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    if name == "one.safetensors":
        indexed(tmp_path, {"a": name})
    refused(tmp_path, f"{name}: no regular file", allow_pickle=True)


def test_a_tensor_in_two_files_is_nobody_s(tmp_path: Path) -> None:
    names = {"a": "one.safetensors", "b": "two.safetensors"}
    refused(indexed(tmp_path, names, one=TENSORS, two={"b": TENSORS["b"]}), "b is stored in one.safetensors and in two")


def test_an_index_that_says_otherwise_than_its_files(tmp_path: Path) -> None:
    names = {"a": "two.safetensors", "b": "two.safetensors"}
    refused(
        indexed(tmp_path, names, two={"b": TENSORS["b"]}), "a is not in two.safetensors, where the index says it is"
    )


def test_a_name_twice_in_a_header(tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    header = ('{"a":' + entry % (0, 4) + ',"a":' + entry % (4, 8) + "}").encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused(tmp_path, "not a whole safetensors file")


# A model's


@pytest.fixture
def changed(llama_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with other tensors and settings."""

    def change(tensors: Callable[[dict[str, torch.Tensor]], None] = lambda found: None, **settings: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(llama_folder, folder)
        found = load_file(folder / SINGLE)
        tensors(found)
        save_file(found, folder / SINGLE, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
        return folder

    return change


def read(folder: Path, name: str) -> torch.Tensor:
    """A parameter as ranks read it."""
    checkpoint = Checkpoint(folder)
    model = build_empty(read_model_config(folder), torch.float32, checkpoint)
    check_complete(model, checkpoint)
    layout = find_layout(model, checkpoint)
    assert layout is not None
    own = next(n for n, p in model.named_parameters() if p is model.get_parameter(name))
    out = torch.empty(layout.shapes[own])
    layout.read_into(own, 0, out.numel(), out.view(-1))
    return out


def same_in_both(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


@pytest.mark.parametrize("head", ["its own", "the same", "none", "only"])
def test_a_head_beside_a_config_that_ties_it(changed: Callable[..., Path], head: str) -> None:
    change = {
        "its own": lambda tensors: None,
        "the same": same_in_both,
        "none": lambda tensors: tensors.pop(HEAD),
        "only": lambda tensors: tensors.pop(EMBEDDING),
    }[head]
    folder = changed(change, tie_word_embeddings=True)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert (plain.get_parameter(HEAD) is plain.get_parameter(EMBEDDING)) == (head != "its own")
    for name in (HEAD, EMBEDDING):
        assert torch.equal(read(folder, name), plain.get_parameter(name)), name


def test_one_parameter_under_two_names(changed: Callable[..., Path]) -> None:
    """As a GPT-2 that was saved once with its prefix and once without."""
    folder = changed(lambda tensors: tensors.update({"norm.weight": tensors["model.norm.weight"] + 1}))
    with pytest.raises(
        InputError, match=r"model.norm.weight and norm.weight, which are both read as model.norm.weight"
    ):
        read(folder, "model.norm.weight")


@pytest.mark.parametrize(
    "architecture",
    ["LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForRewardModel", "GPT2DoubleHeadsModel"],
)
def test_a_classifier_is_no_language_model(changed: Callable[..., Path], architecture: str) -> None:
    with pytest.raises(InputError, match=f"is a {architecture}, not a language model: its head would be lost"):
        read_model_config(changed(architectures=[architecture]))


@pytest.mark.parametrize("name", ["score.weight", "v_head.summary.weight", "classifier.dense.weight"])
def test_the_head_of_a_classifier_on_a_causal_body(changed: Callable[..., Path], name: str) -> None:
    folder = changed(lambda tensors: tensors.update({name: torch.ones(1, 27)}))
    with pytest.raises(InputError, match=f"has a head that is no part of LlamaForCausalLM .{name}. and would be lost"):
        read(folder, HEAD)


def test_a_file_that_the_config_names(changed: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="names its weight file itself"):
        read_model_config(changed(transformers_weights="other.safetensors"))


def test_a_tensor_that_no_rule_of_names_was_meant_for(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """As GPT-2 was published: without prefix, and with constants that no model has any more."""
    model = tiny.gpt2(len(tiny_tokenizer))
    folder = tiny.save(model, tiny_tokenizer, tmp_path)
    tensors = {name.removeprefix("transformer."): t.clone() for name, t in load_file(folder / SINGLE).items()}
    save_file({**tensors, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, folder / SINGLE, {"format": "pt"})
    assert torch.equal(read(folder, "transformer.h.1.ln_1.weight"), model.transformer.h[1].ln_1.weight)
