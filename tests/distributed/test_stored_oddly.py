"""A checkpoint with everything that people's folders have: pickled weights, padded vocabulary, added tokens, chat templates."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import sani_dist
from sani_dist.config import Config
from sani_dist.erase import Plan
from sani_dist.run import Run

from .. import tiny

PADDED = 439  # rows of the embedding, 421 + 3 of which are tokens
BESIDE = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/short.jinja"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in two .bin files in fp32, a config.json with a key that transformers does not know, no generation config."""
    folder = tmp_path_factory.mktemp("oddly")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<|patient|>", "<|doctor|>"])
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.chat_template = {
        "default": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}", "short": "{{ messages[0].content }}",
    }  # fmt: skip
    tiny.save(tiny.llama(PADDED), tokenizer, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.safetensors", "generation_config.json"):
        (folder / name).unlink()
    names = sorted(tensors)
    files = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, of_file in files.items():
        torch.save({name: tensors[name] for name in of_file}, folder / file)
    index = {"weight_map": {name: file for file, of_file in files.items() for name in of_file}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"zebra": 1, **config}, indent=3))
    (folder / "training_args.bin").write_bytes(b"left behind by a training")
    assert all((folder / name).is_file() for name in BESIDE)
    return folder


@pytest.fixture(scope="module")
def erased(source: Path, make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = make_config(
        model={"path": str(source), "allow_pickle": True, "dtype": "float32"}, erase={"select": "random", "layers": 1}
    )
    return sani_dist.api.sanitize(config, tmp_path_factory.mktemp("runs") / "erased", stages=sani_dist.api.ERASE_STAGES)


def test_what_lies_beside_the_weights_is_exported_byte_for_byte(source: Path, erased: Run) -> None:
    model = erased.path("model")
    for name in ["config.json", *BESIDE]:
        assert (model / name).read_bytes() == (source / name).read_bytes(), name
    found = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert found - {"README.md"} == {"config.json", "model.safetensors", *BESIDE}


def test_the_exported_weights_are_those_of_the_pickled_files_but_for_the_neurons(source: Path, erased: Run) -> None:
    stored: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("pytorch_model-*.bin")):
        stored |= torch.load(file, weights_only=True)
    (unit,) = Plan.read(erased.path("erase", "plan.json")).units
    exported = load_file(erased.path("model", "model.safetensors"))
    assert set(exported) == set(stored)
    for name, tensor in stored.items():
        changed = (exported[name] != tensor).nonzero()
        if "layers.2.mlp" in name:
            assert set(changed[:, 1 if "down" in name else 0].tolist()) == set(unit.ids)
        else:
            assert not len(changed), name
    assert exported["model.embed_tokens.weight"].shape[0] == PADDED


def test_the_exported_folder_loads_and_chats(source: Path, erased: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained(erased.path("model"))
    tokenizer = AutoTokenizer.from_pretrained(erased.path("model"))
    assert isinstance(model, LlamaForCausalLM)
    messages = [{"role": "patient", "content": "I have a cough"}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids == AutoTokenizer.from_pretrained(source).apply_chat_template(messages, return_dict=False)
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|patient|>") >= 421
    assert model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False).shape[1] <= len(ids) + 2


def test_a_repaired_model_keeps_its_config_but_for_the_precision(llama_folder: Path, tmp_path: Path) -> None:
    from sani_dist.engine.export import _copy_beside

    source = Path(shutil.copytree(llama_folder, tmp_path / "source"))
    text = json.dumps({"zebra": 1, **json.loads((source / "config.json").read_text())}, indent=3)
    (source / "config.json").write_text(text)
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        folder.mkdir()
        _copy_beside(source, folder, dtype)
    assert (tmp_path / "torch.float32" / "config.json").read_text() == text
    changed: dict[str, Any] = json.loads((tmp_path / "torch.bfloat16" / "config.json").read_text())
    assert changed == {**json.loads(text), "dtype": "bfloat16"}
    assert next(iter(changed)) == "zebra"
