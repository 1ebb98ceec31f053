"""What cannot work is refused in one clear line, before any rank starts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import sani_dist
from sani_dist.api import check_disk
from sani_dist.config import Config
from sani_dist.config_file import config_to_mapping
from sani_dist.errors import InputError
from sani_dist.purge import purge
from sani_dist.run import Run

from . import tiny
from .watching import COMMAND


@pytest.fixture
def refused(make_config: Callable[..., Config], tmp_path: Path) -> Callable[..., None]:
    """Run with some settings changed; the run must be refused with `match`, and no rank started."""

    def check(match: str, **sections: dict[str, Any]) -> None:
        folder = tmp_path / "run"
        with pytest.raises(InputError, match=match) as error:
            sani_dist.sanitize(make_config(**sections), folder)
        assert "\n" not in str(error.value)
        assert not any(word in str(error.value) for word in tiny.CANARIES)
        assert list(folder.glob("logs/rank-*")) == []

    return check


@pytest.fixture
def model_copy(llama_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


# The model


def test_missing_model(refused: Callable[..., None], tmp_path: Path) -> None:
    refused("model.path: .*nowhere has no config.json", model={"path": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_of_the_model_is_missing(refused: Callable[..., None], model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    expected = {
        "config.json": "no config.json",
        "model.safetensors": "no model.safetensors",
        "tokenizer.json": "tokenizer",
    }
    refused(expected[name], model={"path": str(model_copy)})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}', '{"model_type": "t5"}'])
def test_config_json_is_not_one_of_a_causal_model(refused: Callable[..., None], model_copy: Path, text: str) -> None:
    (model_copy / "config.json").write_text(text)
    refused("model.path: ", model={"path": str(model_copy)})


def test_truncated_weights(refused: Callable[..., None], model_copy: Path) -> None:
    file = model_copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused("model.safetensors: .* copy or export it again", model={"path": str(model_copy)})


@pytest.mark.parametrize("change", ["missing", "cut", "transposed"])
def test_weights_that_are_not_those_of_the_config(refused: Callable[..., None], model_copy: Path, change: str) -> None:
    """transformers would fill in what is missing at random, and the run would sanitise a model that nobody has."""
    file = model_copy / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = (tensors[name][:-1] if change == "cut" else tensors[name].T).contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    shapes = {
        "missing": "",
        "cut": r" of shape \[40, 27\]; its config.json says \[41, 27\]",
        "transposed": r" of shape \[27, 41\]; its config.json says \[41, 27\]",
    }
    refused(rf"model.path: .*{name}{shapes[change]}", model={"path": str(model_copy)})


def test_weights_that_are_not_plain(refused: Callable[..., None], model_copy: Path) -> None:
    path = {"path": str(model_copy)}
    config = json.loads((model_copy / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    (model_copy / "config.json").write_text(json.dumps(quantised))
    refused(r"model.path: .* has quantised weights \(gptq\); expected plain ones: dequantise", model=path)
    (model_copy / "config.json").write_text(json.dumps(config))
    file = model_copy / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t.to(torch.float8_e4m3fn) if t.dim() == 2 else t for n, t in tensors.items()}, file)
    refused(r"model.safetensors: .* is stored as F8_E4M3, a quantised format; expected plain weights", model=path)
    file.unlink()
    torch.save(tensors, model_copy / "pytorch_model.bin")
    refused(r"only pickled weights \(.bin\); save it as safetensors, or set model.allow_pickle", model=path)
    (model_copy / "pytorch_model.bin").rename(model_copy / "model-q4.gguf")
    refused(r"model.path: .* has quantised weights \(GGUF\)", model=path)
    refused(r"model.path: .* has quantised weights \(GGUF\)", model={"path": str(model_copy / "model-q4.gguf")})


def test_more_layers_than_the_model_has(refused: Callable[..., None]) -> None:
    refused("erase.layers: 4, but the model has 3 layers", erase={"layers": 4})


def test_no_layer_left_below_those_that_are_trained(refused: Callable[..., None]) -> None:
    refused("repair.trainable: last 3, but the model has 3 layers", repair={"trainable": {"last": 3}})


@pytest.mark.parametrize("trainable", ["all", {"last": 2}])
def test_a_model_without_activation_checkpointing(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch, trainable: str | dict[str, int]
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    repair = {"activation_checkpointing": 0.5, "trainable": trainable}
    refused("repair.activation_checkpointing: LlamaForCausalLM has none; leave it out", repair=repair)


def test_more_tokens_to_keep_than_there_are(refused: Callable[..., None]) -> None:
    too_many = {"objectives": {"kl": 1.0, "kl_top": 10**6}}
    refused("repair.objectives.kl_top: expected fewer tokens than the vocabulary has", repair=too_many)


def test_a_base_of_another_model(refused: Callable[..., None], gpt2_folder: Path, tmp_path: Path) -> None:
    base = {"erase": {"reset": "base"}}
    refused("model.base: its tensors are not those of model.path", model={"base": str(gpt2_folder)}, **base)
    refused("nowhere", model={"base": str(tmp_path / "nowhere")}, **base)
    everything = {"erase": {"layers": 1, "reset": "base", "select": "everything"}}
    refused("model.base: its tensors are not those of model.path", model={"base": str(gpt2_folder)}, **everything)
    aim = {"repair": {"objectives": {"aim": 1}}}
    refused("model.base: .* is no checkpoint with a tokenizer", model={"base": str(tmp_path / "nowhere")}, **aim)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tiny.save(tiny.llama(len(tokenizer)), tokenizer, tmp_path / "other")
    refused("model.base: .* has another tokenizer than model.path", model={"base": str(tmp_path / "other")}, **aim)


def test_a_base_that_the_audit_cannot_ask(refused: Callable[..., None], model_copy: Path) -> None:
    """Broken in its config, or in its weights."""
    config = model_copy / "config.json"
    whole = config.read_text()
    for broken in ("{}", whole.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4')):
        assert broken != whole
        config.write_text(broken)
        refused("model.base: its config.json and weights are no checkpoint", model={"base": str(model_copy)})


# The text


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"note": "a"}\n', "record 1 has no column `text`; it has note"),
        (b"", "is empty"),
        (b'{"patient": "a", "text": " ", "spans": []}\n', "has no text"),
        (b'{"patient": "a", "text": "nothing here", "spans": []}\n', "nothing sensitive was found"),
        (
            b'{"patient": "a", "text": "Zebulon", "spans": [{"start": 0, "end": 8, "kind": "A"}]}\n',
            "reaches beyond the text",
        ),
        (b'{"patient": "a", "text": "Zebulon \xff", "spans": []}\n', "line 1 is not valid UTF-8"),
    ],
)
def test_a_corpus_that_cannot_work(refused: Callable[..., None], tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    refused(match, corpus={"source": str(path)})


# The machine


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ("{", "is not JSON"),
        ("[]", "zero_optimization.stage 3"),
        ('{"zero_optimization": {"stage": 2}}', "zero_optimization.stage 3"),
        ('{"zero_optimization": 3}', "zero_optimization.stage 3"),
        ('{"zero_optimization": {"stage": 3}, "optimizer": {"type": "Adam"}}', "remove 'optimizer'"),
        ('{"zero_optimization": {"stage": 3}, "train_batch_size": 8}', "remove 'train_batch_size'"),
    ],
)
def test_a_ds_config_that_is_none(refused: Callable[..., None], tmp_path: Path, document: str, match: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(document)
    refused(f"cluster.ds_config: .*{match}", cluster={"ds_config": str(path)})
    refused("cluster.ds_config: cannot read", cluster={"ds_config": str(tmp_path / "nothing.json")})


def test_not_enough_disk(tmp_path: Path) -> None:
    check_disk(tmp_path / "not" / "yet", 1000)
    with pytest.raises(
        InputError, match=rf"not enough disk at {tmp_path}: the run needs 1000000.0 GB, \d+.\d GB are free"
    ):
        check_disk(tmp_path / "not" / "yet", 10**15)


def test_a_run_is_refused_where_the_disk_has_not_enough(make_config: Callable[..., Config], small_disk: Path) -> None:
    with (small_disk / "ballast").open("wb") as stream:
        stream.write(b"\0" * (23 * 2**20 + 2**19))
    with pytest.raises(InputError, match=rf"not enough disk at {small_disk}: the run needs"):
        sani_dist.sanitize(make_config(), small_disk / "run")
    assert not (small_disk / "run").exists()


# Run folders


def test_a_folder_that_is_not_empty(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("mine")
    refused("is not empty: choose another folder")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["letter.txt"]


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        sani_dist.resume(tmp_path)
    with pytest.raises(InputError, match="is not a run folder"):
        sani_dist.resume(tmp_path / "nothing")


def test_resuming_with_another_model(make_config: Callable[..., Config], model_copy: Path, tmp_path: Path) -> None:
    run = sani_dist.api.prepare(make_config(model={"path": str(model_copy)}), tmp_path / "run")
    assert run.pending()[0] == "audit-before"
    file = model_copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"model.path: the model has changed since this run started"):
        sani_dist.resume(run.folder)
    assert list(run.folder.glob("logs/rank-*")) == []


def test_resuming_a_purged_run(make_config: Callable[..., Config], tmp_path: Path) -> None:
    run = sani_dist.api.prepare(make_config(), tmp_path / "run")
    purge(run.folder)
    with pytest.raises(InputError, match="its key is gone"):
        sani_dist.resume(run.folder)
    assert list(run.folder.glob("logs/rank-*")) == []


def test_settings_that_a_stage_did_not_use_undo_nothing(make_config: Callable[..., Config], tmp_path: Path) -> None:
    run = sani_dist.api.prepare(make_config(), tmp_path / "run")
    changed = {"cluster": {"workers": 3}, "erase": {"fraction": 0.9}}
    settings = config_to_mapping(run.config)
    for section, values in changed.items():
        settings[section].update(values)
    run.path("config.yaml").write_text(yaml.safe_dump(settings))
    assert Run.open(run.folder).is_done("prepare")
    settings["corpus"]["row_length"] = 32
    run.path("config.yaml").write_text(yaml.safe_dump(settings))
    assert not Run.open(run.folder).is_done("prepare")


# On the command line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--set", "erase.fraction=0"], "error: erase.fraction: Input should be greater than 0"),
        (["--set", "model.path=/nowhere"], "error: model.path: /nowhere has no config.json"),
    ],
)
def test_the_command_says_one_line_and_exits_with_2(
    make_config: Callable[..., Config], tmp_path: Path, arguments: list[str], line: str
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_to_mapping(make_config())))
    command = [*COMMAND, "run", str(tmp_path / "run.yaml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
