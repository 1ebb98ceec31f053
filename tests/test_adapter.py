"""Adapters that cannot be sanitised alone, and settings that make no sense with one: one line each, before any rank starts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sani_dist import cli
from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping
from sani_dist.errors import InputError
from sani_dist.stages import preflight

from . import tiny
from .distributed import masked_families

MLP = ("up_proj", "down_proj")
BASE: dict[str, Any] = {"reset": "base", "layers": 1}
EMBEDDING = "base_model.model.model.embed_tokens.weight"
QUERY = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def adapter(llama_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    return lambda modules=MLP, **options: tiny.lora(llama_folder, tmp_path / "adapter", modules, **options)


@pytest.fixture
def check(make_config: Callable[..., Config]) -> Callable[..., dict[str, Any]]:
    """What a dry run says of an adapter of the tiny Llama."""

    def of(adapter: Path, model: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
        config = make_config(model={"adapter": str(adapter), **(model or {})}, **{"erase": BASE, **sections})
        return preflight.check(config)

    return of


@pytest.fixture
def refused(check: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    def of(match: str, *arguments: Any, **sections: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            check(*arguments, **sections)
        assert "\n" not in str(error.value)

    return of


def test_what_a_dry_run_says(check: Callable[..., dict[str, Any]], adapter: Callable[..., Path]) -> None:
    """Of 3 layers up_proj [41, 27] and down_proj [27, 41], rank 5; trained and written is the adapter."""
    found, count = check(adapter()), 3 * 2 * 5 * (27 + 41)
    assert (found["architecture"], found["streamed"]) == ("LlamaForCausalLM", True)
    assert (found["neurons_reset"], found["heads_reset"]) == (round(0.3 * 41), 0)
    assert found["disk_bytes"] == count * (2 + 12 * 2)
    assert found["training_bytes"] == found["parameters"] * 2 + count * 16


def test_ranks_and_scales_of_their_own_are_plain_lora(
    check: Callable[..., dict[str, Any]], adapter: Callable[..., Path]
) -> None:
    patterns = {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"up_proj": 3}}
    found = check(adapter(**patterns, use_rslora=True, init_lora_weights="gaussian", layers_to_transform=[2]))
    assert found["disk_bytes"] == (5 + 2) * (27 + 41) * (2 + 12 * 2)


def test_no_adapter(refused: Callable[..., None], adapter: Callable[..., Path], tmp_path: Path) -> None:
    refused("model.adapter: .*nowhere has no adapter_config.json; expected a LoRA adapter", tmp_path / "nowhere")
    folder = adapter()
    (folder / "adapter_config.json").write_text("{")
    refused("model.adapter: .*adapter_config.json is not that of an adapter", folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused("adapter_model.safetensors: .* copy or export it again", folder)
    weights.unlink()
    refused("model.adapter: .* has no adapter_model.safetensors", folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("r", "5"), ("lora_alpha", None), ("lora_dropout", "none"), ("target_modules", 3), ("exclude_modules", 3),
        ("layers_to_transform", "all"), ("layers_pattern", 5), ("rank_pattern", 3), ("alpha_pattern", [1]),
    ],
)  # fmt: skip
def test_settings_of_another_type(refused: Callable[..., None], adapter: Callable[..., Path], name: str, value: Any) -> None:  # fmt: skip
    folder = adapter()
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, name: value}))
    refused("model.adapter: .*adapter_config.json is not that of an adapter; save it again", folder)


def test_a_pattern_that_is_none(refused: Callable[..., None], adapter: Callable[..., Path]) -> None:
    folder = adapter()
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "rank_pattern": {"(": 2}}))
    refused("model.adapter: .* changes modules that model.path does not have", folder)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"trainable_token_indices": [3, 4], "use_dora": True}, "trainable_token_indices, use_dora"),
    ],
)
def test_more_than_plain_lora(refused: Callable[..., None], adapter: Callable[..., Path], options: Any, named: str) -> None:  # fmt: skip
    refused(rf"model.adapter: .* is more than plain LoRA \({named}\); merge it: sani-dist merge", adapter(**options))


def test_another_kind(refused: Callable[..., None], llama_folder: Path, tmp_path: Path) -> None:
    settings = IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(llama_folder), settings).save_pretrained(tmp_path)
    refused("model.adapter: .* is of another kind than LoRA; merge it: sani-dist merge", tmp_path)


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_not_of_the_blocks_alone(refused: Callable[..., None], adapter: Callable[..., Path], module: str) -> None:
    refused("model.adapter: .* changes more than projections of the blocks; merge it", adapter([*MLP, module]))


def test_of_another_model(
    refused: Callable[..., None], adapter: Callable[..., Path], gpt2_folder: Path, tmp_path: Path
) -> None:
    of_gpt2 = tiny.lora(gpt2_folder, tmp_path / "gpt2", ["c_fc"], fan_in_fan_out=True)
    refused("model.adapter: .* changes modules that model.path does not have.* expected an adapter of that", of_gpt2)
    folder = adapter(["q_proj"])
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    shape = r"of shape \[5, 26\]; with model.path it would be \[5, 27\]: expected an adapter of that model"
    for match, changed in (
        (f"has {QUERY} {shape}", {**tensors, QUERY: tensors[QUERY][:, :-1].contiguous()}),
        (f"has no tensor {QUERY}; expected an adapter of model.path", {n: t for n, t in tensors.items() if n != QUERY}),
        (f"has {EMBEDDING}, which is not of a LoRA of model.path; merge it", {**tensors, EMBEDDING: torch.zeros(3)}),
    ):
        save_file(changed, file, metadata={"format": "pt"})
        refused(f"model.adapter: .* {match}", folder)


def test_units_without_a_part_in_it(refused: Callable[..., None], adapter: Callable[..., Path]) -> None:
    heads, mlp = (
        rf"erase.units: the adapter has no part in the {units} of block 2: .*; set erase.units: {others}"
        for units, others in (("neurons", "heads"), ("heads", "mlp"))
    )
    refused(heads, adapter(["q_proj", "v_proj"]))
    refused(mlp, adapter(), erase={**BASE, "units": "heads"})
    refused(
        "erase.units: the adapter has no part in the neurons of block 2: .*; set erase.layers: 0",
        adapter(layers_to_transform=[0, 1]),
    )


def test_layers_of_which_none_is_in_it(refused: Callable[..., None], adapter: Callable[..., Path]) -> None:
    refused(
        "repair.trainable: the adapter changes none of the last layers", adapter(layers_to_transform=[0]),
        erase={"layers": 0}, repair={"trainable": {"last": 1}},
    )  # fmt: skip


def test_settings_that_make_no_sense_with_it(
    refused: Callable[..., None], check: Callable[..., dict[str, Any]], adapter: Callable[..., Path], llama_folder: Path
) -> None:
    folder = adapter()
    for reset in ("init", "zero"):
        match = "erase.reset: what an adapter has of a neuron can only be taken away.* set it to base"
        refused(match, folder, erase={"reset": reset})
    assert check(folder, erase={"layers": 0, "reset": "init"})["neurons_reset"] == 0
    refused("model.base: the base of model.adapter is model.path; leave it out", folder, {"base": str(llama_folder)})


def test_an_audit_of_a_model_takes_the_adapter_that_it_is_given(
    make_config: Callable[..., Config], llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the one of the settings that its corpus is taken from."""
    file, audited = tmp_path / "run.yaml", []
    file.write_text(yaml.safe_dump(config_to_mapping(make_config(model={"adapter": "trained"}, erase=BASE))))
    monkeypatch.setattr(cli, "_sanitize", lambda settings, *_: audited.append(settings.model.adapter))
    for command in ("audit", "attack"):
        for given in ([], ["--set", "model.adapter=other"]):
            done = CliRunner().invoke(cli.app, [command, str(llama_folder), "--corpus", str(file), *given])
            assert done.exit_code == 0, done.output
    assert audited == [None, tmp_path / "other"] * 2


def test_a_masked_language_model(make_config: Callable[..., Config], tmp_path: Path) -> None:
    tokenizer = masked_families.tokenizer()
    family = masked_families.MASKED_FAMILIES["BERT"]
    base = tiny.save(masked_families.build_masked(family, tokenizer), tokenizer, tmp_path / "bert")
    folder = tiny.lora(base, tmp_path / "adapter", ["intermediate.dense"], task_type=None)
    config = make_config(model={"path": str(base), "adapter": str(folder)}, erase=BASE)
    with pytest.raises(InputError, match=r"model.adapter: not for a masked language model"):
        preflight.check(config)


def test_without_peft(refused: Callable[..., None], adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    folder = adapter()
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(r"model.adapter: peft is missing; pip install -c constraints.txt -e '.\[lora\]'", folder)


def test_settings_of_a_later_peft(
    check: Callable[..., dict[str, Any]], refused: Callable[..., None], adapter: Callable[..., Path]
) -> None:
    """What is not known has to be off."""
    folder = adapter()
    document = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**document, "use_anything_new": False}))
    assert check(folder)["streamed"]
    (folder / "adapter_config.json").write_text(json.dumps({**document, "use_anything_new": True}))
    refused(r"is more than plain LoRA \(use_anything_new\)", folder)
