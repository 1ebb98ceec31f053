"""An adapter merged into its base: the same model, and one that a run takes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sani_dist import lora
from sani_dist.config import Config
from sani_dist.errors import InputError
from sani_dist.stages import preflight

from . import tiny
from .watching import COMMAND

IDS = torch.tensor([[17, 42, 5, 300, 29]])


@pytest.fixture(scope="module")
def adapter(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.lora(llama_folder, tmp_path_factory.mktemp("adapter"), ["q_proj", "up_proj", "down_proj"])


@pytest.fixture(scope="module")
def merged(llama_folder: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "model"
    lora.merge(llama_folder, adapter, out)
    return out


def test_the_merged_model_computes_what_base_and_adapter_compute(
    llama_folder: Path, adapter: Path, merged: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(llama_folder)
    alone = base(IDS).logits
    both = PeftModel.from_pretrained(base, adapter).eval()
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(merged)(IDS).logits
        torch.testing.assert_close(found, both(IDS).logits, atol=1e-4, rtol=1e-4)
    assert (found - alone).abs().max() > 0.1


def test_its_tensors_are_those_of_the_base(llama_folder: Path, merged: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (llama_folder, merged))
    assert set(before) == set(after)
    changed = {name.split(".", 3)[-1] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"self_attn.q_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"}


def test_a_run_takes_it_and_not_the_adapter(make_config: Callable[..., Config], adapter: Path, merged: Path) -> None:
    assert preflight.check(make_config(model={"path": str(merged)}))["streamed"]
    with pytest.raises(InputError, match=r"model.path: .* is an adapter; merge it first: sani-dist merge BASE"):
        preflight.check(make_config(model={"path": str(adapter)}))


def test_a_tokenizer_beside_the_adapter_wins(llama_folder: Path, adapter: Path, tmp_path: Path) -> None:
    tokenizer: PreTrainedTokenizerFast = tiny.tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(adapter)
    try:
        lora.merge(llama_folder, adapter, tmp_path / "model")
    finally:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            (adapter / name).unlink()
    assert (tmp_path / "model" / "chat_template.jinja").read_text() == tokenizer.chat_template


def test_what_cannot_be_merged(llama_folder: Path, gpt2_folder: Path, adapter: Path, tmp_path: Path) -> None:
    def refused(match: str, *arguments: Any) -> None:
        with pytest.raises(InputError, match=match) as error:
            lora.merge(*arguments)
        assert "\n" not in str(error.value)

    refused("expected a LoRA adapter of that model", gpt2_folder, adapter, tmp_path / "new")
    refused("expected a peft adapter", llama_folder, llama_folder, tmp_path / "new")
    refused("is there already", llama_folder, adapter, tmp_path)
    refused("no config.json", tmp_path / "nothing", adapter, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_command(llama_folder: Path, adapter: Path, merged: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "merge", str(llama_folder), str(adapter)]
    subprocess.run([*command, "--out", str(tmp_path / "model")], check=True, capture_output=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (merged / "model.safetensors").read_bytes()


@pytest.mark.parametrize("modules", [["q_proj", "lm_head"], ["embed_tokens"]])
def test_an_end_of_a_tied_model_gets_weights_of_its_own(tmp_path: Path, modules: list[str]) -> None:
    """Added to tied weights, what is meant for the output projection would be added to the embedding too."""
    model = tiny.llama(421)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    base = tiny.save(model, tiny.tokenizer(), tmp_path / "base")
    adapter = tiny.lora(base, tmp_path / "adapter", modules, init_lora_weights=False)
    both = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    lora.merge(base, adapter, tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(found(IDS).logits, both(IDS).logits, atol=1e-4, rtol=1e-4)


def test_what_does_not_compute_the_same_is_not_written(
    llama_folder: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(InputError, match="computes something else than the two together"):
        lora.merge(llama_folder, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_pickled_weights_are_not_read(llama_folder: Path, adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(llama_folder, base)
    torch.save(load_file(base / "model.safetensors"), base / "weights.bin")
    (base / "model.safetensors").unlink()
    names = dict.fromkeys(load_file(llama_folder / "model.safetensors"), "weights.bin")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InputError, match=r"names a file that is not .safetensors"):
        lora.merge(base, adapter, tmp_path / "merged")
